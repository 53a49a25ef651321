// Instructions of small pieces of the path of an event, counted by valgrind, beside the counts that
// were last accepted (scripts/instructions.json). Wall-clock time of a shared machine moves by a
// quarter; these counts move by a hundredth.
//
//   scripts/bench instructions [--accept]
//
// Each piece runs a few times and many times; the difference is what one time costs, start-up left
// out. Fails when a piece has become dearer by more than a twentieth.
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { count } from "./callgrind.mjs";

const root = fileURLToPath(new URL("../", import.meta.url));
const KEPT = path.join(root, "scripts/instructions.json");
const TOLERATED = 0.05;
/** More times where one time costs little, so that what differs from start to start does not show. */
const PIECES = {
  "dispatch-heartbeat": 50_000,
  "dispatch-typing": 50_000,
  "dispatch-message": 1_500,
  "decode-message": 100_000,
  "frame-message": 500_000,
};
const FEW = 50;

const { values: options } = parseArgs({
  allowPositionals: true,
  options: {
    accept: { type: "boolean" },
    "no-build": { type: "boolean" },
    binaries: { type: "string", default: path.join(root, "target/release") },
    out: { type: "string", default: path.join(root, "target/bench") },
    work: { type: "string" },
  },
});
fs.mkdirSync(options.out, { recursive: true });

async function instructions(piece, times) {
  const directory = fs.mkdtempSync(path.join(options.work, "instructions-"));
  const counted = await count(path.resolve(options.binaries, "examples/instructions"),
    [piece, String(times), directory], path.join(options.out, `${piece}.callgrind`));
  fs.rmSync(directory, { recursive: true });
  return counted;
}

const kept = fs.existsSync(KEPT) ? JSON.parse(fs.readFileSync(KEPT, "utf8")) : {};
const found = {};
let isDearer = false;
console.log("piece                instructions     accepted   change");
for (const [piece, times] of Object.entries(PIECES)) {
  const few = await instructions(piece, FEW);
  const many = await instructions(piece, FEW + times);
  found[piece] = Math.round((many - few) / times);
  const change = found[piece] / kept[piece] - 1;
  isDearer ||= change > TOLERATED;
  const told = Number.isFinite(change) ? `${change < 0 ? "" : "+"}${(100 * change).toFixed(1)} %` : "new";
  console.log(`${piece.padEnd(20)} ${String(found[piece]).padStart(12)} ${String(kept[piece] ?? "").padStart(12)} `
    + `${told.padStart(8)}${change > TOLERATED ? "   DEARER" : ""}`);
}
if (options.accept) fs.writeFileSync(KEPT, `${JSON.stringify(found, null, 2)}\n`);
console.log(`\nWhere they are spent: callgrind_annotate ${path.relative(process.cwd(), options.out)}/PIECE.callgrind`);
process.exit(isDearer && !options.accept ? 1 : 0);
