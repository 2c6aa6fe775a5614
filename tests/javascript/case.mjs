// How a script takes a case and tells what it found.
import { readFileSync } from "node:fs";

export const given = JSON.parse(readFileSync(0, "utf8"));

export async function run(cases) {
  const found = await cases[process.argv[2]]();
  process.stdout.write(JSON.stringify(found));
}
