// Aedes on a port of 127.0.0.1: node aedes.mjs <port> <node_modules>
import { createRequire } from "node:module";
import { createServer } from "node:net";

const [port, modules] = process.argv.slice(2);
const { Aedes } = createRequire(`${modules}/`)("aedes");
const broker = await Aedes.createBroker();
createServer(broker.handle).listen(Number(port), "127.0.0.1");
