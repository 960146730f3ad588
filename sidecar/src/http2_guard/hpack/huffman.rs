//! The Huffman code of header fields (RFC 7541, section 5.2 and appendix B), decoded by four bits at a time.

use super::HpackError;

/// Length of the code of each byte, and of the end of a string, in bits. The code is canonical: shorter codes come
/// first, and codes of one length are in the order of their symbols.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];
/// Symbol that ends a string, which is never encoded.
const END: usize = 256;
const MAX_LENGTH: u8 = 30;
/// Number of inner nodes of the code's tree, one less than the symbols.
const NODES: usize = 256;

/// A child of a node: another node, or from `LEAF` on a symbol.
const LEAF: u16 = 512;

/// Children of each node.
const TREE: [[u16; 2]; NODES] = tree();

const fn tree() -> [[u16; 2]; NODES] {
    let mut tree = [[0; 2]; NODES];
    let (mut nodes, mut code, mut length) = (1, 0_u32, 1);
    while length <= MAX_LENGTH {
        let mut symbol = 0;
        while symbol <= END {
            if LENGTHS[symbol] == length {
                let (mut node, mut bit) = (0, length - 1);
                while bit > 0 {
                    let side = (code >> bit & 1) as usize;
                    if tree[node][side] == 0 {
                        tree[node][side] = nodes;
                        nodes += 1;
                    }
                    node = tree[node][side] as usize;
                    bit -= 1;
                }
                tree[node][(code & 1) as usize] = LEAF + symbol as u16;
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    tree
}

/// Result of four bits at a node.
#[derive(Clone, Copy)]
struct Step {
    /// The next node.
    node: u8,
    byte: u8,
    emits: bool,
    is_end: bool,
}

static STEPS: [[Step; 16]; NODES] = steps();

const fn steps() -> [[Step; 16]; NODES] {
    let mut steps = [[Step { node: 0, byte: 0, emits: false, is_end: false }; 16]; NODES];
    let mut start = 0;
    while start < NODES {
        let mut bits = 0;
        while bits < 16 {
            let (mut node, mut bit) = (start as u16, 4);
            let mut step = steps[start][bits];
            while bit > 0 {
                bit -= 1;
                node = TREE[node as usize][bits >> bit & 1];
                if node >= LEAF {
                    let symbol = node - LEAF;
                    (step.emits, step.byte) = (true, symbol as u8);
                    step.is_end = symbol as usize == END;
                    node = 0;
                }
            }
            step.node = node as u8;
            steps[start][bits] = step;
            bits += 1;
        }
        start += 1;
    }
    steps
}

/// Nodes at which a string may end: those of up to seven ones, the most significant bits of the symbol that ends it.
static ENDS: [bool; NODES] = ends();

const fn ends() -> [bool; NODES] {
    let mut ends = [false; NODES];
    let (mut node, mut ones) = (0, 0);
    while ones < 8 {
        ends[node] = true;
        node = TREE[node][1] as usize;
        ones += 1;
    }
    ends
}

/// Appends the decoded string to `output`.
pub(super) fn decode(encoded: &[u8], output: &mut Vec<u8>) -> Result<(), HpackError> {
    let mut node = 0;
    for byte in encoded {
        for bits in [byte >> 4, byte & 15] {
            let step = STEPS[usize::from(node)][usize::from(bits)];
            if step.emits {
                if step.is_end {
                    return Err(HpackError::Malformed);
                }
                output.push(step.byte);
            }
            node = step.node;
        }
    }
    if ENDS[usize::from(node)] { Ok(()) } else { Err(HpackError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoded: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut output = vec![];
        decode(encoded, &mut output).map(|()| output)
    }

    #[test]
    fn strings_of_rfc_7541_are_decoded() {
        let encoded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&encoded).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn padding_is_of_at_most_seven_ones() {
        assert_eq!(decoded(&[0b0001_1111]).unwrap(), b"a");
        assert!(decoded(&[0b0001_1110]).is_err(), "a zero");
        assert!(decoded(&[0b0001_1111, 0xff]).is_err(), "more than seven");
        assert!(decoded(&[0xff, 0xff, 0xff, 0xff]).is_err(), "the end of a string");
    }
}
