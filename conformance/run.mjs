// run.mjs SUITE BASE-URL CACHE VERSION FILE: runs every test through the cache at BASE-URL, whose origin is origin.mjs, and
// writes {cache, version, results} to FILE.
import { writeFileSync } from 'node:fs'
import { openSuite } from './suite.mjs'

// So many tests run at a time. Some have to be over within the two seconds that an answer is fresh.
const atOnce = 25

const [suite, base, cache, version, file] = process.argv.slice(2)
const { load, tests, fetch } = await openSuite(suite)
const { runTests, getResults } = await load('client/runner.mjs')
await runTests(tests, fetch, false, base, atOnce)
writeFileSync(file, JSON.stringify({ cache, version, results: getResults() }, null, 2) + '\n')
