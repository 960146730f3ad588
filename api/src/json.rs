//! JSON that is read on terminals.

use std::fmt::Write as _;

/// Returns JSON with escapes for what is not printable ASCII. Texts of clients may have characters that a terminal obeys, such as U+009B,
/// or that show others in another order, and JSON escapes only those below U+0020 by itself.
pub fn in_ascii(json: String) -> String {
    let is_plain = |c: char| c < '\u{7f}';
    if json.chars().all(is_plain) {
        return json;
    }
    // Such characters are in strings only.
    let mut escaped = String::with_capacity(2 * json.len());
    for c in json.chars() {
        if is_plain(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(escaped, "\\u{unit:04x}").expect("a string can be written to");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_the_same_and_has_no_character_that_a_terminal_obeys() {
        let text = "a\u{9b}31m\u{7f}\u{202e}é𝄞\u{1b}\"\\";
        let json = in_ascii(serde_json::to_string_pretty(&[text]).unwrap());
        assert_eq!(json, "[\n  \"a\\u009b31m\\u007f\\u202e\\u00e9\\ud834\\udd1e\\u001b\\\"\\\\\"\n]");
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [text]);
    }
}
