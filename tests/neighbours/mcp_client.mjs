// The official SDK for Node: tells as JSON what a server says.
//   node mcp_client.mjs http URL TOOL ARGUMENTS [HEADERS]
//   node mcp_client.mjs stdio COMMAND TOOL ARGUMENTS
// COMMAND, ARGUMENTS and HEADERS are JSON.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [kind, address, tool, fields, headers = "{}"] = process.argv.slice(2);

function transport() {
  if (kind === "http") {
    return new StreamableHTTPClientTransport(
      new URL(address), { requestInit: { headers: JSON.parse(headers) } },
    );
  }
  const [command, ...args] = JSON.parse(address);
  return new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" });
}

const client = new Client({ name: "neighbour", version: "1" });
await client.connect(transport());
const { tools } = await client.listTools();
// The client checks the answer against the tool's own schema.
const result = await client.callTool({ name: tool, arguments: JSON.parse(fields) });
await client.close();
console.log(JSON.stringify({
  server: client.getServerVersion(), tools: tools.map(({ name }) => name), result,
}));
