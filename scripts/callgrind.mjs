// Instructions that a program takes, start to end, all its threads: the same in every run but for a
// hundredth, whatever else the machine does.
import { execFile, execFileSync } from "node:child_process";
import { promisify } from "node:util";

export function hasValgrind() {
  try {
    execFileSync("valgrind", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** What is spent where is written to `out`, for callgrind_annotate. */
export async function count(program, args, out = "/dev/null") {
  const { stderr } = await promisify(execFile)("valgrind",
    ["--tool=callgrind", `--callgrind-out-file=${out}`, program, ...args]);
  return Number(/Collected : (\d+)/.exec(stderr)[1]);
}
