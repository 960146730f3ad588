//! `Accept-Language`, whose order means nothing beside its weights (RFC 9110, section 12.5.4).

use super::{Fields, members, write_number};

/// How many ranges are put in order; a request with more is not normalised.
const MOST: usize = 16;

/// A language range and its weight, in thousandths.
#[derive(Clone, Copy)]
struct Range<'a> {
    tag: &'a [u8],
    weight: u16,
}

/// Appends the ranges in their order; `false`, with nothing appended, if there are none, too many, or one that can't be read.
pub(super) fn write(into: &mut String, fields: &(impl Fields + ?Sized)) -> bool {
    let mut ranges = [Range { tag: &[], weight: 0 }; MOST];
    let mut count = 0;
    for member in fields.values("accept-language").flat_map(members) {
        let (Some(slot), Some(range)) = (ranges.get_mut(count), parse(member)) else {
            return false;
        };
        *slot = range;
        count += 1;
    }
    let ranges = &mut ranges[..count];
    ranges.sort_unstable_by(|one, other| {
        let by_weight = other.weight.cmp(&one.weight);
        by_weight.then_with(|| lower(one.tag).cmp(lower(other.tag)))
    });
    for (at, range) in ranges.iter().enumerate() {
        // A colon is in no header's name, and where others have "=": a value that is not in this form is never taken for one.
        into.push(if at == 0 { ':' } else { ',' });
        into.extend(lower(range.tag).map(char::from));
        into.push(';');
        write_number(into, range.weight);
    }
    count > 0
}

fn lower(tag: &[u8]) -> impl Iterator<Item = u8> {
    tag.iter().map(u8::to_ascii_lowercase)
}

/// `language-range [ weight ]`
fn parse(member: &[u8]) -> Option<Range<'_>> {
    let (tag, weight) = match member.iter().position(|byte| *byte == b';') {
        None => (member, 1000),
        Some(at) => (member[..at].trim_ascii_end(), weight(member[at + 1..].trim_ascii_start())?),
    };
    let is_range = |byte: &u8| byte.is_ascii_alphanumeric() || [b'-', b'*'].contains(byte);
    (!tag.is_empty() && tag.iter().all(is_range)).then_some(Range { tag, weight })
}

/// `q=0.8`: at most three digits, at most 1 (RFC 9110, section 12.4.2).
fn weight(text: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', whole @ (b'0' | b'1'), rest @ ..] = text else {
        return None;
    };
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let place = |at: usize| digits.get(at).map_or(0, |digit| u16::from(digit - b'0'));
    let weight = u16::from(whole - b'0') * 1000 + place(0) * 100 + place(1) * 10 + place(2);
    (weight <= 1000).then_some(weight)
}
