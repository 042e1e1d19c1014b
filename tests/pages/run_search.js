// Runs the book's search without a page: node run_search.js FOLDER SECTIONS, queries as JSON on stdin.
// FOLDER holds minisearch.js and search.js as the reader's page loads them.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [folder, sections] = process.argv.slice(2);
globalThis.window = globalThis;
globalThis.MiniSearch = require(path.join(folder, "minisearch.js"));
for (const script of [sections, path.join(folder, "search.js")])
  vm.runInThisContext(fs.readFileSync(script, "utf8"), { filename: script });

const search = mpSearch(window.MPBOOK_SECTIONS);
const found = JSON.parse(fs.readFileSync(0, "utf8")).map((query) =>
  search(query).slice(0, 10).map(({ section, terms }) => ({
    ids: section.ids,
    title: section.title,
    shown: mpExcerpt(section.text, terms),
  })),
);
process.stdout.write(JSON.stringify(found));
