//! Profiles of callgrind ("Callgrind Format Specification" of its manual).

use std::collections::{BTreeMap, HashMap};

/// Sums the instructions of each function itself in a profile that has no other event and no position but lines.
pub fn self_cost(profile: &str) -> BTreeMap<String, u64> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut costs: HashMap<&str, u64> = HashMap::new();
    let mut function = "";
    let mut is_call = false;
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = named(&mut names, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            named(&mut names, name);
        } else if line.starts_with("calls=") {
            // The next line is the cost of the called function.
            is_call = true;
        } else if let Some(cost) = cost(line)
            && !std::mem::take(&mut is_call)
        {
            *costs.entry(function).or_default() += cost;
        }
    }
    let mut sums = BTreeMap::new();
    for (function, cost) in costs {
        *sums.entry(without_recursion(function).to_owned()).or_default() += cost;
    }
    sums
}

/// Returns the name of `(number) name`, or the one that this number was given before.
fn named<'a>(names: &mut HashMap<&'a str, &'a str>, text: &'a str) -> &'a str {
    match text.split_once(") ") {
        Some((number, name)) => {
            names.insert(number, name);
            name
        }
        None => names.get(text.trim_end_matches(')')).copied().unwrap_or(text),
    }
}

/// Reads the second number of a line of costs, of which the first is a position: `+3 17`, `* 17` or `12 17`.
fn cost(line: &str) -> Option<u64> {
    if !line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
        return None;
    }
    line.split(' ').nth(1)?.parse().ok()
}

/// Removes the depth of a recursion from a name: `name'2`.
fn without_recursion(name: &str) -> &str {
    match name.rsplit_once('\'') {
        Some((name, depth)) if depth.parse::<u32>().is_ok() => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_of_a_call_is_not_that_of_the_caller() {
        let profile = "events: Ir\nsummary: 0\n\nfn=(1) <a::B<'a> as c>::d\n16 40\n+2 2\ncfn=(2) e\ncalls=3 +35\n* 900\n* 5\n\n\
            fn=(2)\n50 900\n\nfn=(3) e'2\n51 7\n\nfn=(1)\n20 1\ntotals: 955\n";
        let expected = [("<a::B<'a> as c>::d", 48), ("e", 907)];
        assert_eq!(self_cost(profile), expected.map(|(name, cost)| (name.to_owned(), cost)).into());
    }
}
