// SHA-256 of a text in UTF-8, as 64 hexadecimal digits. A page opened from disk or from a plain http
// address of the local network may not have crypto.subtle. Source: FIPS 180-4.

const PRIMES = [];
for (let n = 2; PRIMES.length < 64; n++) if (PRIMES.every((p) => n % p)) PRIMES.push(n);
const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32) >>> 0;
const ROUNDS = PRIMES.map((p) => fraction(Math.cbrt(p)));
const START = PRIMES.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
const turn = (x, by) => (x >>> by) | (x << (32 - by));

function padded(bytes) {
  const whole = new Uint8Array(((bytes.length + 72) >> 6) << 6);
  whole.set(bytes);
  whole[bytes.length] = 0x80;
  const end = new DataView(whole.buffer);
  end.setUint32(whole.length - 8, Math.floor(bytes.length / 2 ** 29));
  end.setUint32(whole.length - 4, bytes.length << 3);
  return end;
}

function mix(state, w) {
  let [a, b, c, d, e, f, g, k] = state;
  for (let i = 0; i < 64; i++) {
    const one = k + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i];
    const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    [k, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
  }
  return [a, b, c, d, e, f, g, k].map((x, i) => (x + state[i]) | 0);
}

export function sha256(text) {
  const data = padded(new TextEncoder().encode(text));
  const w = new Int32Array(64);
  let state = START;
  for (let at = 0; at < data.byteLength; at += 64) {
    for (let i = 0; i < 16; i++) w[i] = data.getInt32(at + 4 * i);
    for (let i = 16; i < 64; i++) {
      const p = w[i - 15], q = w[i - 2];
      w[i] = w[i - 16] + (turn(p, 7) ^ turn(p, 18) ^ (p >>> 3)) + w[i - 7] + (turn(q, 17) ^ turn(q, 19) ^ (q >>> 10));
    }
    state = mix(state, w);
  }
  return state.map((x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}
