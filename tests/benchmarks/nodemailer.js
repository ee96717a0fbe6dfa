// Nodemailer's pool, told what to do line by line: first where, then lists of messages.
const readline = require("node:readline");
const nodemailer = require("nodemailer");

let transport = null;

async function handle(line) {
  const what = JSON.parse(line);
  if (!transport) {
    transport = nodemailer.createTransport({
      host: "localhost",
      port: what.port,
      secure: false,
      requireTLS: true,
      auth: { user: what.user, pass: what.password },
      tls: { ca: what.ca },
      pool: true,
      maxConnections: what.connections,
      maxMessages: Infinity,
    });
    return;
  }
  await Promise.all(what.map((message) => transport.sendMail(message)));
}

const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
  handle(line).then(
    () => console.log("done"),
    (error) => console.log(String(error).replace(/\n/g, " ")),
  );
});
input.on("close", () => {
  if (transport) transport.close();
  process.exit(0);
});
