//! Hashes as text.

/// Returns the first 16 hexadecimal digits of a hash, which tell apart the versions of one thing: configurations,
/// templates, tokens.
pub fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..16].to_owned()
}

/// Returns the first 32 hexadecimal digits of a hash, long enough that nobody finds a second text with the same.
pub fn long(hash: &blake3::Hash) -> String {
    hash.to_hex()[..32].to_owned()
}

/// Returns bytes as lower-case hexadecimal digits, two for each byte.
pub fn hex<const BYTES: usize, const DIGITS: usize>(bytes: &[u8; BYTES]) -> [u8; DIGITS] {
    const { assert!(DIGITS == 2 * BYTES, "two digits for each byte") };
    // Without a table, so that many are made at once.
    let digit = |number: u8| number + if number < 10 { b'0' } else { b'a' - 10 };
    let mut digits = [0; DIGITS];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_beginning_of_the_hash() {
        let hash = blake3::hash(b"larder");
        assert_eq!((short(&hash).len(), long(&hash).len()), (16, 32));
        assert!(hash.to_hex().starts_with(&long(&hash)) && long(&hash).starts_with(&short(&hash)));
        assert_eq!(hex::<32, 64>(hash.as_bytes()), *hash.to_hex().as_bytes());
    }
}
