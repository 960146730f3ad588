//! The memory of a cache, in a process of its own.

use std::{fs, process, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::ValueEnum;
use http::{StatusCode, header};
use larder_policy::{
    PurgeName,
    response_meta::{ResponseMeta, Times},
};
use larder_sidecar::{
    barriers::Stamp,
    entry::{Content, Entry, Head},
    headers::FieldLines,
    l1::Stored,
};
use serde::{Deserialize, Serialize};

use crate::{candidates::Cache, traces::Random};

/// Limit of caches that are churned.
pub const BOUND: u64 = 64 << 20;

/// Number of entries for the bytes per entry.
const ENTRIES: u32 = 50_000;

/// Time after which freed memory has left the process.
const SETTLED: Duration = Duration::from_millis(500);

/// Contents of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Fill {
    /// Entries of 1 KiB, without evictions.
    Entries,
    /// Ten times the limit, of 256 bytes to 1 MiB.
    Varied,
    /// Twice the limit of entries of 64 bytes, then ten times the limit of 1 MiB.
    SmallThenLarge,
}

/// Measured memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// Resident memory at the end, minus that at the start, in bytes.
    pub resident: u64,
    /// Maximum resident memory.
    pub peak: u64,
    /// Number of bytes that the cache reports.
    pub counted: u64,
    /// Number of entries that the cache reports.
    pub entries: u64,
}

/// Fills a cache, and measures this process.
///
/// # Errors
/// If `/proc` does not report the memory.
pub fn fill(cache: &dyn Cache, fill: Fill) -> Result<Taken> {
    let before = resident(process::id(), "VmRSS")?;
    let mut random = Random(3);
    let mut number = 0_u32;
    let mut insert = |size: usize| {
        let key = key(number);
        cache.insert(&key, answer(&key, size));
        number += 1;
    };
    match fill {
        Fill::Entries => (0..ENTRIES).for_each(|_| insert(1024)),
        Fill::Varied => until(10 * BOUND, || {
            let size = varied(&mut random);
            insert(size);
            size
        }),
        Fill::SmallThenLarge => {
            until(2 * BOUND, || {
                insert(64);
                1024
            });
            until(10 * BOUND, || {
                insert(1 << 20);
                1 << 20
            });
        }
    }
    // What is freed is given back soon, not at once. It is not asked for anything before, which makes some of them tidy up.
    thread::sleep(SETTLED);
    let (resident, peak) = (resident(process::id(), "VmRSS")?, resident(process::id(), "VmHWM")?);
    Ok(Taken {
        resident: resident.saturating_sub(before),
        peak: peak.saturating_sub(before),
        counted: cache.bytes(),
        entries: cache.entries(),
    })
}

fn until(total: u64, mut insert: impl FnMut() -> usize) {
    let mut sum = 0;
    while sum < total {
        sum += insert() as u64;
    }
}

/// Returns a size from 256 bytes to 1 MiB, with equal shares of each order of magnitude.
pub fn varied(random: &mut Random) -> usize {
    (256.0 * (random.share() * 12.0).exp2()) as usize
}

/// Returns a key in L1's format.
pub fn key(number: u32) -> String {
    format!("GET http shop.example /api/products/{number}?lang=en")
}

/// Returns a response with a body of this size, which is stored under `key`.
pub fn answer(key: &str, size: usize) -> Stored {
    let lines = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "max-age=60"),
        (header::ETAG, "\"33a64df551425fcc55e4d42a148795d9f25f89d4\""),
        (header::DATE, "Wed, 21 Oct 2015 07:28:00 GMT"),
    ]
    .map(|(name, value)| (name, value.as_bytes()));
    let fields: FieldLines = lines.iter().map(|(name, value)| (name.as_str().as_bytes(), *value)).collect();
    let times = Times { requested_at: 0, received_at: 0 };
    let meta = ResponseMeta::read(StatusCode::OK, &fields, times, &[]);
    // As many as a request without tags has.
    let names = [PurgeName::key(key), PurgeName::key("GET:/api/products"), PurgeName::path("/api/products")];
    let (fields, stamp, names) = (Arc::new(fields), Stamp::default(), names.into());
    let head = Head { fields, is_to_head: false, meta, stamp, names };
    Stored::Entry(Entry::new(key, &head, Content::Whole(Bytes::from(vec![b'x'; size]))).into())
}

/// Returns a field of a process' status, in bytes.
///
/// # Errors
/// If the process is gone, or has no such field.
pub fn resident(pid: u32, field: &str) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| file.clone())?;
    parse(&status, field).with_context(|| format!("{file} has no {field}"))
}

/// proc(5): `VmRSS:      1234 kB`.
fn parse(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_of_the_process_status_is_read() {
        let status = "VmHWM:\t    2000 kB\nVmRSS:\t    1234 kB\n";
        assert_eq!(parse(status, "VmRSS"), Some(1234 * 1024));
        assert_eq!(parse(status, "Vm"), None);
    }

    #[test]
    fn sizes_are_within_their_bounds() {
        let mut random = Random(1);
        assert!((0..1000).all(|_| (256..=1 << 20).contains(&varied(&mut random))));
    }
}
