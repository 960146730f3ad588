//! `Accept-Language` and `Accept-Encoding`: lists whose order is insignificant beside their weights, and whose members
//! are case-insensitive (RFC 9110, sections 12.5.3, 12.5.4 and 8.4.1).

use super::{Fields, members, write_number};

/// Maximum number of members that are sorted; a request with more is not normalised.
const MAX_MEMBERS: usize = 16;

/// A language range or a content coding, and its weight in thousandths.
#[derive(Clone, Copy)]
struct Member<'a> {
    name: &'a [u8],
    weight: u16,
}

/// Appends the members of a field in the order of their weights, in lower case. Returns false, with nothing appended, if there
/// are none, too many, or one that can't be parsed.
pub(super) fn write(into: &mut String, field: &str, fields: &(impl Fields + ?Sized)) -> bool {
    let mut listed = [Member { name: &[], weight: 0 }; MAX_MEMBERS];
    let mut count = 0;
    for text in fields.values(field).flat_map(members) {
        let (Some(slot), Some(member)) = (listed.get_mut(count), parse(text)) else {
            return false;
        };
        *slot = member;
        count += 1;
    }
    let listed = &mut listed[..count];
    listed.sort_unstable_by(|one, other| {
        let by_weight = other.weight.cmp(&one.weight);
        by_weight.then_with(|| lower(one.name).cmp(lower(other.name)))
    });
    for (at, member) in listed.iter().enumerate() {
        // A colon is in no header's name, and where others have "=": a value that is not in this form is never taken for one.
        into.push(if at == 0 { ':' } else { ',' });
        into.extend(lower(member.name).map(char::from));
        into.push(';');
        write_number(into, member.weight);
    }
    count > 0
}

fn lower(name: &[u8]) -> impl Iterator<Item = u8> {
    name.iter().map(u8::to_ascii_lowercase)
}

/// `( language-range / codings ) [ weight ]`
fn parse(text: &[u8]) -> Option<Member<'_>> {
    let (name, weight) = match text.iter().position(|byte| *byte == b';') {
        None => (text, 1000),
        Some(at) => (text[..at].trim_ascii_end(), weight(text[at + 1..].trim_ascii_start())?),
    };
    // Of the characters of a token those that ranges and registered codings have.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || [b'-', b'*', b'_', b'.'].contains(byte);
    (!name.is_empty() && name.iter().all(is_plain)).then_some(Member { name, weight })
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
