// Reads an AsyncAPI document from stdin; prints what the official parser finds wrong with it, a
// line a finding, and exits with 1 if it is no valid document.
const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

const ERROR = 0;
const WARNING = 1;

new Parser().parse(readFileSync(0, "utf8")).then(({ document, diagnostics }) => {
  const findings = diagnostics.filter(({ severity }) => severity === ERROR || severity === WARNING);
  for (const { message, path } of findings) console.log(`/${path.join("/")}: ${message}`);
  process.exit(document ? 0 : 1);
});
