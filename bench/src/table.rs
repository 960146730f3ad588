//! Results as a table.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};

use crate::server::Server;

/// Returns the lines around a bench's output.
fn marks(bench: &str) -> [String; 2] {
    [
        format!("<!-- bench {bench}: written by `./dev bench {bench} --markdown` -->"),
        format!("<!-- bench {bench}: end -->"),
    ]
}

/// One round of one server.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Responses for each second of the server's CPU.
    pub per_cpu_second: f64,
    /// Responses per second.
    pub per_second: f64,
    /// Share of its core that the server used, 1 for all of it.
    pub busy: f64,
    /// Share of the core that was idle.
    pub idle: f64,
    /// Responses for each second of the load's CPU.
    pub load_per_cpu_second: f64,
    /// Median latency, in milliseconds.
    pub p50: f64,
    /// 99th percentile of latency, in milliseconds.
    pub p99: f64,
}

/// All rounds of one server, in the order in which they were measured.
pub struct Row {
    /// The server.
    pub server: Server,
    /// Name and version.
    pub name: String,
    /// One sample for each round.
    pub samples: Vec<Sample>,
}

impl Row {
    fn median_of(&self, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.iter().map(value).collect())
    }

    /// Returns the server's share of its core, in the median round.
    pub fn busy(&self) -> f64 {
        self.median_of(|sample| sample.busy).unwrap_or_default()
    }

    /// Returns the idle share of the core, in the median round.
    pub fn idle(&self) -> f64 {
        self.median_of(|sample| sample.idle).unwrap_or_default()
    }
}

/// The rows as a Markdown table whose columns line up.
pub fn render(rows: &[Row]) -> String {
    let mut lines = vec![
        vec![
            "server",
            "req / CPU-s",
            "to HAProxy",
            "to nginx",
            "to hyper and a map",
            "p50",
            "p99",
            "req/s",
            "core busy",
        ]
        .into_iter()
        .map(str::to_owned)
        .collect(),
    ];
    for row in rows {
        let ratio = |to| ratio(rows, row, to).map_or("".into(), |ratio| format!("{ratio:.2}"));
        let shown = |value: Option<f64>, show: fn(f64) -> String| value.map_or(String::new(), show);
        lines.push(vec![
            row.name.clone(),
            shown(row.median_of(|sample| sample.per_cpu_second), thousands),
            ratio(Server::Haproxy),
            ratio(Server::Nginx),
            ratio(Server::Ceiling),
            shown(row.median_of(|sample| sample.p50), milliseconds),
            shown(row.median_of(|sample| sample.p99), milliseconds),
            shown(row.median_of(|sample| sample.per_second), thousands),
            format!("{:.0} %", row.busy() * 100.0),
        ]);
    }
    layout(&lines)
}

/// Lines of as many cells each, the first of them the titles, as a Markdown table whose columns line up.
pub fn layout(lines: &[Vec<String>]) -> String {
    let width =
        |column: usize| lines.iter().map(|line: &Vec<String>| line[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let mut table = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 {
                write!(table, "| {cell:width$} ")
            } else {
                write!(table, "| {cell:>width$} ")
            };
        }
        table.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let _ = write!(table, "| {}{} ", "-".repeat(width - 1), if column == 0 { '-' } else { ':' });
            }
            table.push_str("|\n");
        }
    }
    table
}

/// Returns the median over the rounds of the ratio of `row` to `to` in the same round, because a slowdown of the
/// machine affects both.
fn ratio(rows: &[Row], row: &Row, to: Server) -> Option<f64> {
    let base = rows.iter().find(|row| row.server == to)?;
    let pairs = row.samples.iter().zip(&base.samples);
    median(pairs.map(|(sample, base)| sample.per_cpu_second / base.per_cpu_second).collect())
}

/// Returns the median: the middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn thousands(value: f64) -> String {
    format!("{:.1}k", value / 1000.0)
}

fn milliseconds(value: f64) -> String {
    format!("{value:.2} ms")
}

/// Puts `text` between the marks of `./dev bench <bench>` in a Markdown file, or makes a file of it where there is none.
///
/// # Errors
/// If the file can't be read or written, or lacks the marks.
pub fn put_into(file: &Path, bench: &str, text: &str) -> Result<()> {
    let [begin, end] = marks(bench);
    let name = || file.display().to_string();
    let old = match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => format!("{begin}\n{end}\n"),
        read => read.with_context(name)?,
    };
    let new = between_marks(&old, text, [&begin, &end])
        .with_context(|| format!("{}: needs the lines {begin} and {end}", name()))?;
    fs::write(file, new).with_context(name)
}

fn between_marks(old: &str, text: &str, [begin, end]: [&str; 2]) -> Option<String> {
    let (before, rest) = old.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: Server, per_cpu_second: &[f64]) -> Row {
        let samples = per_cpu_second
            .iter()
            .map(|&per_cpu_second| Sample {
                per_cpu_second,
                per_second: 1000.0,
                busy: 1.0,
                idle: 0.0,
                load_per_cpu_second: 1000.0,
                p50: 0.5,
                p99: 1.0,
            })
            .collect();
        Row { server, name: server.as_str().to_owned(), samples }
    }

    #[test]
    fn a_ratio_is_the_median_of_those_of_the_rounds() {
        // In the middle of the second round the machine slowed down to a tenth: the ratio of medians would be 1.
        let rows = [row(Server::Larder, &[200.0, 20.0, 100.0]), row(Server::Haproxy, &[100.0, 10.0, 100.0])];
        assert_eq!(ratio(&rows, &rows[0], Server::Haproxy), Some(2.0));
        assert_eq!(ratio(&rows, &rows[0], Server::Nginx), None);
    }

    #[test]
    fn median_is_the_middle_value() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn the_table_lines_up() {
        let table = render(&[row(Server::Larder, &[123_456.0]), row(Server::Ceiling, &[150_000.0])]);
        let widths: Vec<usize> = table.lines().map(str::len).collect();
        assert_eq!(widths.len(), 4);
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
        assert!(table.contains("123.5k") && table.contains("0.82"), "{table}");
    }

    #[test]
    fn only_text_between_the_marks_changes() {
        let old = "# A\nBEGIN\nold\nEND\n## B\n";
        let put = |old| between_marks(old, "new\n", ["BEGIN", "END"]);
        let new = put(old).unwrap();
        assert_eq!(new, "# A\nBEGIN\n\nnew\n\nEND\n## B\n");
        assert_eq!(put(&new), Some(new.clone()));
        assert_eq!(put("# A\n"), None);
    }
}
