use super::*;
use crate::http2_guard::list::MAX_LIST;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, HpackError> {
    let mut list = HeaderList::default();
    decoder.decode(block, &mut list)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ok(list.iter().map(|(name, value)| (text(name), text(value))).collect())
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().filter_map(|digit| char::from(digit).to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const FIRST: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];

/// Appendices C.3 and C.4 of RFC 7541: three requests on a connection, without and with Huffman code.
#[test]
fn requests_of_rfc_7541_are_decoded() {
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(decode(&mut decoder, &bytes(blocks[0])), Ok(pairs(&FIRST)));
        assert_eq!(decoder.table.size(), 57);
        let second = [&FIRST[..], &[("cache-control", "no-cache")]].concat();
        assert_eq!(decode(&mut decoder, &bytes(blocks[1])), Ok(pairs(&second)));
        assert_eq!(decoder.table.size(), 110);
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        assert_eq!(decode(&mut decoder, &bytes(blocks[2])), Ok(pairs(&third)));
        assert_eq!(decoder.table.size(), 164);
    }
}

/// Appendix C.5: entries are evicted from a table of 256 bytes.
#[test]
fn entries_of_rfc_7541_are_evicted() {
    let mut decoder = Decoder::default();
    let first = "3fe101 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a \
                 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
    let fields = |status, date| {
        pairs(&[
            (":status", status),
            ("cache-control", "private"),
            ("date", date),
            ("location", "https://www.example.com"),
        ])
    };
    let date = "Mon, 21 Oct 2013 20:13:21 GMT";
    assert_eq!(decode(&mut decoder, &bytes(first)), Ok(fields("302", date)));
    assert_eq!(decoder.table.size(), 222);
    assert_eq!(decode(&mut decoder, &bytes("4803 3330 37c1 c0bf")), Ok(fields("307", date)));
    assert_eq!(decoder.table.size(), 222);
    let third = "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 \
                 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 \
                 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31";
    let date = "Mon, 21 Oct 2013 20:13:22 GMT";
    let cookie =
        ("set-cookie".to_owned(), "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1".to_owned());
    let mut last = fields("200", date);
    last.extend([("content-encoding".to_owned(), "gzip".to_owned()), cookie]);
    assert_eq!(decode(&mut decoder, &bytes(third)), Ok(last));
    assert_eq!(decoder.table.size(), 215);
}

#[test]
fn malformed_blocks_are_refused() {
    for block in [
        "80",                // index 0
        "be",                // an entry that is not there
        "7f 80 80 80 80 01", // an index that is too long
        "ff ff ff ff ff ff ff ff",
        "3f e2 1f", // a table that is larger than allowed: 4097
        "82 20",    // a size after a field
        "82 3f e1 1f",
        "40 01",          // no name
        "40 01 61",       // no value
        "40 01 61 05 62", // a value that is cut off
        "00 81 ff 00",    // padding that is not of ones of the end
        "5f",
    ] {
        assert_eq!(decode(&mut Decoder::default(), &bytes(block)), Err(HpackError::Malformed), "{block}");
    }
    assert_eq!(decode(&mut Decoder::default(), &bytes("20 3f e1 1f 82")), Ok(pairs(&[(":method", "GET")])));
    assert_eq!(decode(&mut Decoder::default(), &[]), Ok(vec![]));
}

#[test]
fn entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::default();
    decode(&mut decoder, &bytes("40 01 61 01 62")).unwrap();
    assert_eq!(decode(&mut decoder, &bytes("be")), Ok(pairs(&[("a", "b")])));
    let mut block = bytes("40 01 61 7f a1 1f");
    block.extend(vec![b'x'; 4128]);
    assert_eq!(decode(&mut decoder, &block).unwrap().len(), 1);
    assert_eq!(decoder.table.size(), 0);
    assert_eq!(decode(&mut decoder, &bytes("be")), Err(HpackError::Malformed));
}

/// A few bytes can name a large entry many times.
#[test]
fn header_list_is_cut_where_it_is_too_large() {
    let mut decoder = Decoder::default();
    let mut block = bytes("82 86 84 40 01 61 7f a1 1e");
    block.extend(vec![b'x'; 4000]);
    let mut list = HeaderList::default();
    decoder.decode(&block, &mut list).unwrap();
    assert!(!list.is_too_large());
    list.clear();
    decoder.decode(&[0xbe; 30], &mut list).unwrap();
    assert!(list.is_too_large() && list.plain_request().is_none());
    let size = list.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>();
    assert_eq!(size, MAX_LIST);
    list.clear();
    assert_eq!(decoder.decode(&[0xbe; 200], &mut list), Err(HpackError::TooLarge));
}

mod against_h2 {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use ::bytes::Bytes;
    use http::{HeaderName, HeaderValue, Request};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::http2_guard::frame::{FrameHead, HEAD, HEADERS};

    fn fields() -> impl Strategy<Value = Vec<Vec<(String, String)>>> {
        let name = prop_oneof![
            Just("cookie".to_owned()),
            Just("user-agent".to_owned()),
            Just("x-a".to_owned()),
            "[a-z][a-z0-9-]{0,20}",
        ];
        let value = prop_oneof!["[ -~]{0,40}", "[ -~]{0,1500}", Just("a".to_owned())];
        prop::collection::vec(prop::collection::vec((name, value), 0..8), 1..12)
    }

    /// Returns the header blocks that h2 makes of requests with these fields.
    async fn blocks(requests: &[Vec<(String, String)>]) -> io::Result<Vec<Vec<u8>>> {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let wanted = requests.len();
        let found = Arc::new(Mutex::new(vec![]));
        let reads = async {
            let mut preface = [0; 24];
            server.read_exact(&mut preface).await?;
            server.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
            while found.lock().unwrap().len() < wanted {
                let mut head = [0; HEAD];
                server.read_exact(&mut head).await?;
                let head = FrameHead::read(&head).unwrap();
                let mut payload = vec![0; head.length];
                server.read_exact(&mut payload).await?;
                if head.kind == HEADERS {
                    found.lock().unwrap().push(payload);
                }
            }
            io::Result::Ok(())
        };
        let asks = async {
            let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
            let driven = tokio::spawn(connection);
            let mut responses = vec![];
            for fields in requests {
                let mut request = Request::get("http://shop/a").body(()).unwrap();
                for (name, value) in fields {
                    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
                }
                sender = sender.ready().await.unwrap();
                responses.push(sender.send_request(request, true).unwrap());
            }
            let sender: h2::client::SendRequest<Bytes> = sender;
            (driven, sender, responses)
        };
        let (read, (driven, ..)) = tokio::join!(reads, asks);
        driven.abort();
        read?;
        Ok(Arc::into_inner(found).unwrap().into_inner().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn blocks_of_h2_are_decoded(requests in fields()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let blocks = runtime.block_on(blocks(&requests)).unwrap();
            let mut decoder = Decoder::default();
            for (fields, block) in requests.iter().zip(blocks) {
                let decoded = decode(&mut decoder, &block).unwrap();
                let mut decoded: Vec<_> = decoded.into_iter().filter(|(name, _)| !name.starts_with(':')).collect();
                let mut expected = fields.clone();
                decoded.sort();
                expected.sort();
                prop_assert_eq!(decoded, expected);
            }
        }
    }
}
