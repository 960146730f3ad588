//! Numbers and lists in words.

use larder_api::admin::PurgeRequest;

/// Maximum number of names in a list.
const MAX_NAMES: usize = 5;

/// Returns a share in percent, rounded down so that 100 % is all; `-` of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{}%", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// Returns a size in bytes with a binary unit.
pub(crate) fn bytes(size: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let (mut size, mut unit) = (size as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{size} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// Returns a time in seconds, with a fraction only below ten seconds.
pub(crate) fn seconds(time: f64) -> String {
    let precise = (time * 1000.0).round() / 1000.0;
    if precise.abs() < 10.0 { format!("{precise} s") } else { format!("{} s", time.round()) }
}

/// Returns a text in one line that changes nothing on a terminal: texts come from policies, clients and servers.
pub(crate) fn one_line(text: &str) -> String {
    // Bidirectional controls show characters in another order (CVE-2021-42574).
    let is_bidirectional = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.replace(|c: char| c.is_control() || is_bidirectional(c), " ")
}

/// Returns lines that change nothing on a terminal, each with its end.
pub(crate) fn lines(text: &str) -> String {
    text.lines().map(|line| one_line(line) + "\n").collect()
}

/// Returns names as a list with an end.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<_> = names.iter().take(MAX_NAMES).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Returns the names of a purge by their kinds, such as `path /a, tag b`.
pub(crate) fn names(request: &PurgeRequest) -> String {
    let PurgeRequest { keys, paths, prefixes, tags, everything, soft: _ } = request;
    let of_kind = |kind, names: &[String]| names.iter().map(|name| format!("{kind} {name}")).collect();
    let mut lists: Vec<Vec<_>> =
        vec![of_kind("key", keys), of_kind("path", paths), of_kind("prefix", prefixes), of_kind("tag", tags)];
    if *everything {
        lists.push(vec!["everything".to_owned()]);
    }
    one_line(&lists.concat().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_only_if_nothing_is_missing() {
        assert_eq!([percent(999, 1000), percent(2, 2), percent(0, 0)], ["99%", "100%", "-"]);
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!([bytes(512), bytes(1536), bytes(3 << 30)], ["512 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!([seconds(0.25), seconds(5.0), seconds(119.6)], ["0.25 s", "5 s", "120 s"]);
    }

    #[test]
    fn lines_have_no_control_characters() {
        assert_eq!(one_line("GET:/\naccept=\u{1b}[31m"), "GET:/ accept= [31m");
        assert_eq!(one_line("a\u{202e}b\u{2066}c"), "a b c");
        assert_eq!(lines("a\u{9b}\nb"), "a \nb\n");
    }

    #[test]
    fn names_have_their_kinds() {
        let mut request = PurgeRequest {
            paths: vec!["/a".into()],
            prefixes: vec!["/p".into()],
            tags: vec!["b".into(), "c".into()],
            ..PurgeRequest::default()
        };
        assert_eq!(names(&request), "path /a, prefix /p, tag b, tag c");
        request.everything = true;
        assert_eq!(names(&request), "path /a, prefix /p, tag b, tag c, everything");
    }

    #[test]
    fn lists_of_names_have_an_end() {
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(listed(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }
}
