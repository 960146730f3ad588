// What is taken from the installed package.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

/** SUITE is the folder that holds its node_modules. */
export async function openSuite (suite) {
  const load = file => import(pathToFileURL(`${suite}/node_modules/http-cache-tests/${file}`))
  // As the package's cli.mjs does: Surrogate-Control is not in the index.
  const tests = [...(await load('tests/index.mjs')).default, (await load('tests/surrogate-control.mjs')).default]
  return { load, tests, fetch: createRequire(`${suite}/package.json`)('node-fetch') }
}
