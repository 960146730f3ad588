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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_beginning_of_the_hash() {
        let hash = blake3::hash(b"larder");
        assert_eq!((short(&hash).len(), long(&hash).len()), (16, 32));
        assert!(hash.to_hex().starts_with(&long(&hash)) && long(&hash).starts_with(&short(&hash)));
    }
}
