//! Sizes of what a request in progress holds. A future is as large as the largest it awaits, and is moved at least once.

use super::{Proxy, Served, fetch::Fetch, request::CacheRequest};

/// Returns the size of the future that a function of so many parameters returns.
macro_rules! size_of_future {
    ($function:expr, $($parameter:ident)+) => {{
        fn size<$($parameter,)+ Future>(_: impl FnOnce($($parameter),+) -> Future) -> usize {
            size_of::<Future>()
        }
        size($function)
    }};
}

#[test]
fn futures_of_the_request_path_are_small() {
    let sizes = [
        ("handle", size_of_future!(Proxy::handle, A B C), 1_024),
        ("pass", size_of_future!(Proxy::pass, A B C D E F), 2_048),
        ("upgrade", size_of_future!(Proxy::upgrade, A B C D E F), 2_048),
        ("write", size_of_future!(Proxy::write, A B C D E F), 2_048),
        ("respond", size_of_future!(Proxy::respond, A B), 1_024),
        ("fetch", size_of_future!(Proxy::fetch, A B), 4_096),
        ("fetch_from_origins", size_of_future!(Proxy::fetch_from_origins, A B), 4_096),
        ("look_in_redis", size_of_future!(Proxy::look_in_redis, A B C), 4_096),
        ("Served", size_of::<Served>(), 512),
        ("CacheRequest", size_of::<CacheRequest>(), 1_024),
        ("Fetch", size_of::<Fetch>(), 512),
    ];
    eprintln!("{sizes:?}");
    let large: Vec<_> = sizes.iter().filter(|(_, size, most)| size > most).collect();
    assert!(large.is_empty(), "{large:?} of {sizes:?}");
}
