// report.mjs SUITE summary FILE: prints what FILE, of run.mjs, says; exits with 1 where a required test failed.
// report.mjs SUITE table DOCUMENT FILE...: writes the table of all of them between the markers in DOCUMENT.
import { readFileSync, writeFileSync } from 'node:fs'
import { openSuite } from './suite.mjs'

// Below this share of required tests that pass, the run says nothing of the cache: it or the suite was not there.
const leastToPass = 0.5
const kinds = ['required', 'optimal', 'check']

const [suite, what, ...files] = process.argv.slice(2)
const { load, tests } = await openSuite(suite)
const { determineTestResult } = await load('lib/display.mjs')
const contradictions = JSON.parse(readFileSync(new URL('contradictions.json', import.meta.url)))
const known = new Map(tests.flatMap(set => set.tests.filter(test => !test.browser_only)).map(test => [test.id, test]))
for (const { id } of contradictions) {
  if ((known.get(id)?.kind ?? 'required') !== 'required' || !known.has(id)) throw new Error(`contradictions.json: ${id} is no required test`)
}
const apart = new Set(contradictions.map(({ id }) => id))

/** The package's own verdicts, by the symbol that it prints. */
const verdicts = {
  '✅': 'pass',
  Y: 'pass',
  '⛔️': 'fail',
  '⚠️': 'fail',
  N: 'fail',
  '🔹': 'setup',
  '↻': 'setup', // the cache sent a request twice
  '⁉️': 'setup',
  '⚪️': 'dependency',
  '-': 'untested'
}

function read (file) {
  const { cache, version, results } = JSON.parse(readFileSync(file))
  const counts = Object.fromEntries(kinds.map(kind => [kind, { pass: 0, fail: 0, setup: 0, dependency: 0, untested: 0, all: 0 }]))
  const notPassed = []
  const contradicted = []
  for (const test of known.values()) {
    const kind = test.kind ?? 'required'
    const verdict = verdicts[determineTestResult(tests, test.id, results)[2]]
    const message = Array.isArray(results[test.id]) ? results[test.id].join(': ') : ''
    const line = { kind, verdict, id: test.id, message }
    if (apart.has(test.id)) {
      contradicted.push(line)
      continue
    }
    counts[kind][verdict]++
    counts[kind].all++
    if (verdict !== 'pass') notPassed.push(line)
  }
  return { cache, version, counts, notPassed, contradicted }
}

function summary (file) {
  const { cache, version, counts, notPassed, contradicted } = read(file)
  const row = (name, ...cells) => console.log(name.padEnd(10) + cells.map(cell => String(cell).padStart(12)).join(''))
  console.log(`${cache} ${version}`)
  row('', 'pass', 'fail', 'setup', 'dependency', 'of')
  for (const kind of kinds) {
    const { pass, fail, setup, dependency, all } = counts[kind]
    row(kind, pass, fail, setup, dependency, all)
  }
  // What a `check` test says is information, not a judgement.
  for (const kind of ['required', 'optimal']) {
    for (const verdict of ['untested', 'fail', 'setup', 'dependency']) {
      const lines = notPassed.filter(line => line.kind === kind && line.verdict === verdict)
      if (lines.length) console.log(`\n${kind}, ${verdict}:`)
      for (const { id, message } of lines) console.log(`  ${id}${message && `: ${message}`}`)
    }
  }
  console.log('\ncontradicted by an RFC (conformance/contradictions.json), counted nowhere:')
  for (const { id, verdict } of contradicted) console.log(`  ${id}: ${verdict}`)

  const { pass, fail, untested, all } = counts.required
  if (pass < all * leastToPass) {
    console.log(`\nonly ${pass} of ${all} required tests pass: was there a cache?`)
    return false
  }
  return fail + untested === 0
}

function table (document, results) {
  const read_ = results.map(read)
  const { counts: { required, optimal, check } } = read_[0]
  const lines = [
    `| cache | required, of ${required.all}: pass | fail | setup | dep | optimal, of ${optimal.all}: pass | check, of ${check.all}: yes |`,
    '| --- | --- | --- | --- | --- | --- | --- |',
    ...read_.map(({ cache, version, counts: { required, optimal, check } }) => '| ' + [
      `${cache} ${version}`, required.pass, required.fail + required.untested, required.setup, required.dependency,
      optimal.pass, check.pass
    ].join(' | ') + ' |')
  ]
  const [start, end] = ['<!-- table -->', '<!-- end of table -->']
  const text = readFileSync(document, 'utf8')
  const [from, to] = [text.indexOf(start), text.indexOf(end)]
  if (from < 0 || to < from) throw new Error(`${document} lacks ${start} or ${end}`)
  writeFileSync(document, `${text.slice(0, from + start.length)}\n${lines.join('\n')}\n${text.slice(to)}`)
}

if (what === 'summary') {
  process.exitCode = summary(files[0]) ? 0 : 1
} else if (what === 'table') {
  table(files[0], files.slice(1))
} else {
  throw new Error('summary or table?')
}
