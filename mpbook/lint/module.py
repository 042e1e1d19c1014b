"""A module's syntax tree with what the rules ask of it: names, scopes, branches.

Nothing is imported or run.  A name is what the file's own imports make of it, so
``from torch.cuda import amp as A; A.autocast()`` is ``torch.cuda.amp.autocast``.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
_SCOPES = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_JUMPS = (ast.Return, ast.Continue, ast.Break, ast.Raise)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
Guard = tuple[ast.AST, str]


class Module:
    """A parsed file.

    Args:
        tree: its syntax tree.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.nodes = list(ast.walk(tree))
        self._parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def calls(self) -> Iterator[ast.Call]:
        """Every call, in the order of the source."""
        yield from self._calls

    @functools.cached_property
    def _calls(self) -> list[ast.Call]:
        return sorted((n for n in self.nodes if isinstance(n, ast.Call)), key=position)

    @functools.cached_property
    def _imported(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found |= {a.asname: a.name for a in node.names if a.asname}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        return found

    def name(self, node: ast.AST) -> str:
        """The dotted name of ``a.b.c``, the first part as its import says; else empty."""
        if isinstance(node, ast.Name):
            return self._imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.name(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return ""

    def attribute(self, call: ast.Call) -> str:
        """The last part of what is called: ``step`` of ``self.optimizer.step()``."""
        if isinstance(call.func, ast.Attribute):
            return call.func.attr
        return call.func.id if isinstance(call.func, ast.Name) else ""

    def parents(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the inside out."""
        while node in self._parents:
            node = self._parents[node]
            yield node

    def scope(self, node: ast.AST) -> Scope:
        """The function, class or module that a node runs in."""
        for parent in self.parents(node):
            if isinstance(parent, _SCOPES):
                return parent
        return self.tree

    def loop(self, node: ast.AST) -> ast.AST | None:
        """The innermost loop around a node within its scope."""
        for parent in self.parents(node):
            if isinstance(parent, _SCOPES):
                return None
            if isinstance(parent, _LOOPS):
                return parent
        return None

    def guards(self, node: ast.AST) -> dict[ast.AST, str]:
        """The branches that a node stands in within its scope, each with its arm."""
        found, child = {}, node
        for parent in self.parents(node):
            if isinstance(parent, _SCOPES):
                break
            arm = _arm(parent, child)
            if arm:
                found[parent] = arm
            child = parent
        return found

    def together(self, first: ast.AST, then: ast.AST) -> bool:
        """Whether one pass through their scope can reach both."""
        if self.scope(first) is not self.scope(then):
            return False
        one, other = self.guards(first), self.guards(then)
        if any(other.get(branch, arm) != arm for branch, arm in one.items()):
            return False
        a, b = sorted((first, then), key=position)
        left = self.guards(a)
        return not any(_leaves(br, arm) for br, arm in left.items() if br not in self.guards(b))

    def whenever(self, evidence: ast.AST, then: ast.AST) -> bool:
        """Whether a pass that reaches `evidence` reaches `then` as well."""
        if not self.together(evidence, then):
            return False
        return set(self.guards(then).items()) <= set(self.guards(evidence).items())

    def assigned(self, name: str, *, at: ast.AST) -> ast.expr | None:
        """What a name or ``self.name`` was last given before a node; in its scope, else around it.

        An attribute is looked for in the whole file, since a method sets what another one reads.
        """
        given = self._assignments.get(name, [])
        if "." in name:
            return given[-1].value if given else None
        scope: ast.AST = self.scope(at)
        while True:
            here = [a for a in given if self.scope(a) is scope]
            before = [a for a in here if position(a) < position(at) and not self._within(at, a)]
            if scope is not self.scope(at) and here:
                return here[-1].value
            if before:
                return before[-1].value
            if here or scope is self.tree or name in _parameters(scope):
                return None
            scope = self.scope(scope)

    def _within(self, node: ast.AST, statement: ast.AST) -> bool:
        return any(parent is statement for parent in self.parents(node))

    @functools.cached_property
    def _assignments(self) -> dict[str, list[ast.Assign | ast.AnnAssign]]:
        found: dict[str, list[ast.Assign | ast.AnnAssign]] = {}
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    found.setdefault(self.name(target), []).append(node)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                found.setdefault(self.name(node.target), []).append(node)
        for nodes in found.values():
            nodes.sort(key=position)
        return found

    def default(self, name: ast.Name) -> ast.expr | None:
        """What a parameter of the function around a name is, if it is not given."""
        scope = self.scope(name)
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return None
        given = scope.args
        places = [*given.posonlyargs, *given.args]
        pairs = dict(zip((a.arg for a in reversed(places)), reversed(given.defaults), strict=False))
        pairs |= {a.arg: d for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d}
        return pairs.get(name.id)

    def is_parameter(self, name: ast.Name) -> bool:
        """Whether a name is one that the function around it was called with."""
        return name.id in _parameters(self.scope(name))

    def functions(self, node: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """The functions around a node, from the inside out."""
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        return [parent for parent in self.parents(node) if isinstance(parent, kinds)]

    def values(self, name: str) -> list[ast.expr]:
        """Everything that a name is given anywhere in the file."""
        return [a.value for a in self._assignments.get(name, []) if a.value is not None]


def position(node: ast.AST) -> tuple[int, int]:
    """Line and column of a node's *end*, which is when a call runs: after its arguments."""
    return getattr(node, "end_lineno", 0) or 0, getattr(node, "end_col_offset", 0) or 0


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """An argument by keyword."""
    return next((k.value for k in call.keywords if k.arg == name), None)


def number(node: ast.AST | None) -> float | None:
    """The value of a number written out, its sign and ``10 ** 9`` included."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            try:
                return float(value)
            except OverflowError:
                return float("inf")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            positive = number(operand)
            return None if positive is None else -positive
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = number(left), number(right)
            if base in (2.0, 10.0) and exponent is not None and abs(exponent) < 300:
                return base**exponent
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as text)]):
            try:
                return float(text)
            except ValueError:
                return None
    return None


def _arm(branch: ast.AST, child: ast.AST) -> str:
    """Which side of a branch a child stands in; empty where it always runs."""
    match branch:
        case ast.If() | ast.IfExp() if child is not branch.test:
            body = branch.body if isinstance(branch.body, list) else [branch.body]
            return "body" if child in body else "else"
        case ast.Try() if child in branch.handlers:
            return "except"
        case ast.Try() if child not in branch.finalbody:
            return "try"
        case ast.match_case():
            return "case"
        case ast.Match() if child in branch.cases:
            return f"case {branch.cases.index(child)}"
    return ""


def _leaves(branch: ast.AST, arm: str) -> bool:
    """Whether an arm ends by leaving the block, so that nothing after the branch runs."""
    if not isinstance(branch, ast.If):
        return False
    statements = branch.body if arm == "body" else branch.orelse
    return bool(statements) and isinstance(statements[-1], _JUMPS)


def _parameters(scope: ast.AST) -> set[str]:
    if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    given = scope.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {argument.arg for argument in every if argument}
