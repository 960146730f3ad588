// origin.mjs SUITE PORT: the suite's own server, on loopback only.
import net from 'node:net'
import { pathToFileURL } from 'node:url'

const [suite, port] = process.argv.slice(2)
Object.assign(process.env, { npm_config_protocol: 'http', npm_config_port: port, npm_config_pidfile: '/dev/null' })
const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (port) {
  return listen.call(this, Number(port), '127.0.0.1')
}

await import(pathToFileURL(`${suite}/node_modules/http-cache-tests/server/server.mjs`))
