// `npm run demo`: an answer in the terminal, then the examples on a web server until Ctrl+C.
//
//   npm run demo [-- --once] [-- --port N]
//
//   --once     print the answer and end
//   --port N   the first port to try; the next free one is taken (8080)

import { parseArgs } from "node:util";
import { printAnswer } from "./demo/answer.mjs";
import { sampleModel } from "./demo/sample.mjs";
import { startServer } from "./demo/server.mjs";
import { SetupError } from "./setup/shell.mjs";

function readArguments() {
  try {
    const { values } = parseArgs({
      options: { once: { type: "boolean", default: false }, port: { type: "string", default: "8080" } },
    });
    const port = Number(values.port);
    if (!Number.isInteger(port) || port < 1 || port > 65_000)
      throw new Error(`--port is ${values.port}; it must be a number from 1 to 65000`);
    return { once: values.once, port };
  } catch (error) {
    throw new SetupError(`${error.message}\nusage: npm run demo -- [--once] [--port N]`);
  }
}

async function demo() {
  const { once, port } = readArguments();
  const sample = sampleModel();
  await printAnswer(sample);
  if (once) return;
  const server = await startServer(sample, port);
  console.log(`
In a browser:  ${server.url}/examples/chat/

  Try the sample model, drop a GGUF file on the page, or paste the address of one.
  Questions about documents, which are read once and kept: ${server.url}/examples/document-qa/
  The smallest page that uses Inlay is ${server.url}/examples/minimal/
  Which parts of a text a model looks at: ${server.url}/examples/attention-map/
  Ctrl+C ends the demo.
`);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => void server.close());
}

try {
  await demo();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`inlay: ${error.message}`);
  process.exitCode = 1;
}
