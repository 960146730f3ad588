// An application on Express with the parts that caches are attacked through: users that can be read and written, an account
// page for whoever has a cookie, and a page for every other path. It listens on 127.0.0.1, on the port of its argument.
const { createRequire } = require("node:module");
const path = require("node:path");
const [port, modules] = process.argv.slice(2);
const express = createRequire(path.join(modules, "node_modules", "/"))("express");

const app = express();
const versions = new Map();
const version = (id) => versions.get(id) ?? 0;

app.disable("etag");
app.set("trust proxy", "loopback");
app.use((request, response, next) => {
  response.set({ "x-app": "express", "x-target": encodeURI(request.originalUrl), "x-peer": request.socket.remoteAddress });
  next();
});
app.get("/api/users/:id", (request, response) => {
  response.json({ id: request.params.id, version: version(request.params.id) });
});
app.all("/api/users/:id", (request, response) => {
  versions.set(request.params.id, version(request.params.id) + 1);
  response.json({ id: request.params.id, version: version(request.params.id) });
});
app.get("/account", (request, response) => response.type("text").send(`account of ${request.get("cookie")}`));
app.get("/whoami", (request, response) => {
  response.json({ host: request.get("host"), protocol: request.protocol, ip: request.ip, url: request.originalUrl });
});
app.use((request, response) => response.type("text").send(`page ${request.method} ${request.originalUrl}`));

app.listen(Number(port), "127.0.0.1");
