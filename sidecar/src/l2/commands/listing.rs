//! The list of the versions of a policy that pods serve by ([`super::super::versions`]).

use std::{sync::LazyLock, time::Duration};

use larder_policy::PurgeName;
use redis::{RedisResult, Script};

use super::super::connection::Connection;

/// Puts a version of the policy into the list of those that pods serve by, and takes out those that no pod was heard of. One that was
/// not there begins: a barrier on it covers what was stored under it before. ARGV: generation if there is none, the version in hex
/// and as it is, seconds that a version stays, and 1 if this pod had it in the list before: it knows what it purged since.
static LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        redis.call('HSETNX', KEYS[1], 'g', ARGV[1])
        local now = tonumber(redis.call('TIME')[1])
        local begins, listed = true, ARGV[2] .. '=' .. now
        for name, seen in string.gmatch(redis.call('HGET', KEYS[1], 'v') or '', '(%x+)=(%d+)') do
          if name == ARGV[2] then
            begins = ARGV[5] == '0' and now - tonumber(seen) > tonumber(ARGV[4])
          elseif now - tonumber(seen) <= tonumber(ARGV[4]) then
            listed = listed .. ' ' .. name .. '=' .. seen
          end
        end
        redis.call('HSET', KEYS[1], 'v', listed)
        if not begins then return end
        local generation, order = redis.call('HGET', KEYS[1], 'g'), redis.call('HINCRBY', KEYS[1], 's', 1)
        redis.call('HSET', KEYS[1], ARGV[3], order)
        redis.call('PUBLISH', KEYS[1], generation .. ' ' .. order .. ' 0 ' .. ARGV[3])
        return {generation, order}
        ",
    )
});

/// Puts a version into the list for so long. If it was not there, nothing that was stored under it before is used: returns the
/// generation and the order of that purge.
pub(in crate::l2) async fn list(
    connection: &mut Connection,
    barriers: &str,
    version: PurgeName,
    presence: Duration,
    was_listed: bool,
) -> RedisResult<Option<(u64, u64)>> {
    let mut call = LIST.prepare_invoke();
    call.key(barriers)
        .arg(connection.mark().new_generation())
        .arg(hex(version))
        .arg(&version.as_bytes()[..])
        .arg(presence.as_secs())
        .arg(u8::from(was_listed));
    call.invoke_async(connection.counting()).await
}

/// Returns true if a list of versions has this one in it.
pub(super) fn is_in_list(listed: &[u8], version: PurgeName) -> bool {
    let mut wanted = [b'='; 33];
    wanted[..32].copy_from_slice(&larder_policy::digest::hex::<16, 32>(version.as_bytes()));
    let mut versions = Some(listed);
    while let Some(rest) = versions {
        if rest.starts_with(&wanted) {
            return true;
        }
        versions = memchr::memchr(b' ', rest).map(|space| &rest[space + 1..]);
    }
    false
}

/// The name of a version as the list has it.
fn hex(version: PurgeName) -> String {
    format!("{version:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_in_a_list_by_its_whole_name() {
        let [one, other] = ["one", "other"].map(PurgeName::version);
        let list = |name: PurgeName| format!("{}=170", hex(name));
        for (listed, is_listed) in [
            (list(one), true),
            (format!("{} {}", list(other), list(one)), true),
            (format!("{} {}", list(one), list(other)), true),
            (list(other), false),
            (hex(one), false),
            (format!("{}0=170", hex(one)), false),
            (format!("0{}", list(one)), false),
            (list(one)[2..].to_owned(), false),
            (format!("x={}", list(one)), false),
            (String::new(), false),
        ] {
            assert_eq!(is_in_list(listed.as_bytes(), one), is_listed, "{listed}");
        }
    }
}
