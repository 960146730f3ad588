//! Headers by which an application may tailor a response: to a place, a device, a version, a language, or to a script that asks
//! for a part of a page.
//!
//! The set is open, like that of headers that identify a user: content delivery networks, gateways and frameworks have their
//! own. A name counts if it has a word that tells of such a purpose. It is in the key wherever it is present, so that a
//! response that depends on it is served to those alone who send the same. The headers that every browser sends are none.

use crate::names::is_alike;

/// Words that tell of tailoring where they stand alone between hyphens, indexed by length.
const WORDS: [&[&str]; 12] = [
    &[],
    &[],
    &["hx", "tz", "ua"],
    &["asn", "dpr", "ect", "geo", "ios", "rsc", "rtt"],
    &["ajax", "city", "lang", "pjax"],
    &["brand", "geoip", "metro", "store", "theme", "turbo", "width"],
    &[
        "alpine", "device", "format", "ipcity", "layout", "locale", "market", "mobile", "postal", "prefer",
        "region", "router", "tablet",
    ],
    &[
        "android", "channel", "country", "desktop", "feature", "inertia", "preview", "segment", "smarttv",
        "variant", "version",
    ],
    &[
        "currency", "datastar", "downlink", "features", "ipregion", "language", "latitude", "livewire",
        "platform", "postcode", "timezone", "viewport",
    ],
    &["continent", "edgescape", "ipcountry", "longitude", "metrocode"],
    &["experiment", "iplatitude", "iptimezone", "maxversion", "postalcode", "regioncode"],
    &[
        "citylatlong",
        "countrycode",
        "countryname",
        "geolocation",
        "ipcontinent",
        "iplongitude",
        "subdivision",
    ],
];

/// Names that tell of tailoring as a whole; one that ends in a hyphen is a prefix.
const KNOWN: [&str; 4] = ["save-data", "x-requested-with", "x-up-", "x-vercel-ip-"];

/// Suffixes of names that have such a word and differ by request, or tell of the connection.
const HARMLESS_ENDS: [&str; 3] = ["http-version", "request-id", "tls-version"];

/// Client hints that an application must ask for, except those that tell of the browser, of which each sends some unasked.
const HINTS: &str = "sec-ch-";

/// Returns true if a response may be tailored by a header, by its name in any case. Callers rule out other kinds first.
pub(crate) fn is_tailoring(name: &[u8]) -> bool {
    let starts = |known: &str| name.get(..known.len()).is_some_and(|part| is_alike(part, known));
    if starts("sec-") {
        return is_hint(name);
    }
    let ends = |known: &str| {
        let from = name.len().checked_sub(known.len());
        from.is_some_and(|from| is_alike(&name[from..], known))
    };
    if starts("access-control-") || HARMLESS_ENDS.into_iter().any(ends) {
        return false;
    }
    let is_known = |known: &str| starts(known) && (known.ends_with('-') || name.len() == known.len());
    name.split(|byte| b"-_.".contains(byte)).any(is_word) || KNOWN.into_iter().any(is_known)
}

/// Returns true for a client hint that an application must ask for, and that does not tell of the browser.
pub(crate) fn is_hint(name: &[u8]) -> bool {
    let (start, rest) = name.split_at(name.len().min(HINTS.len()));
    is_alike(start, HINTS) && !rest.get(..2).is_some_and(|part| part.eq_ignore_ascii_case(b"ua"))
}

fn is_word(part: &[u8]) -> bool {
    let words = WORDS.get(part.len()).copied().unwrap_or_default();
    words.iter().any(|word| part.eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeaderKinds;

    fn survey(name: &str) -> HeaderKinds {
        HeaderKinds::of(&[(name.as_bytes(), b"x".as_slice())][..])
    }

    #[test]
    fn words_are_where_their_length_says() {
        for (length, words) in WORDS.into_iter().enumerate() {
            assert!(words.is_sorted() && words.iter().all(|word| word.len() == length), "{words:?}");
        }
    }

    #[test]
    fn headers_of_networks_gateways_and_frameworks_are_recognised() {
        for name in [
            "Accept-Version",
            "CF-Device-Type",
            "CF-IPCity",
            "CF-IPContinent",
            "CF-IPCountry",
            "CF-IPLatitude",
            "CF-Region-Code",
            "CF-Timezone",
            "CloudFront-Is-Android-Viewer",
            "CloudFront-Is-Desktop-Viewer",
            "CloudFront-Is-IOS-Viewer",
            "CloudFront-Is-Mobile-Viewer",
            "CloudFront-Is-SmartTV-Viewer",
            "CloudFront-Is-Tablet-Viewer",
            "CloudFront-Viewer-City",
            "CloudFront-Viewer-Country",
            "CloudFront-Viewer-Country-Region-Name",
            "CloudFront-Viewer-Latitude",
            "CloudFront-Viewer-Metro-Code",
            "DPR",
            "Datastar-Request",
            "Device-Memory",
            "Downlink",
            "ECT",
            "Fastly-Geo-Country",
            "Fly-Region",
            "HX-Boosted",
            "HX-Request",
            "HX-Target",
            "Next-Router-Prefetch",
            "Next-Router-State-Tree",
            "OData-MaxVersion",
            "Prefer",
            "RSC",
            "RTT",
            "Save-Data",
            "Sec-CH-DPR",
            "Sec-CH-Device-Memory",
            "Sec-CH-Prefers-Color-Scheme",
            "Sec-CH-Viewport-Width",
            "Turbo-Frame",
            "Viewport-Width",
            "Width",
            "X-Akamai-Device-Characteristics",
            "X-Akamai-Edgescape",
            "X-Ajax",
            "X-Api-Version",
            "X-AppEngine-City",
            "X-AppEngine-CityLatLong",
            "X-AppEngine-Country",
            "X-AppEngine-Region",
            "X-Client-Geo-Location",
            "X-Country",
            "X-Country-Code",
            "X-Currency",
            "X-Device",
            "X-Device-Type",
            "X-Experiment",
            "X-Geo-Country",
            "X-GeoIP-City",
            "X-GeoIP2-Country",
            "X-GitHub-Api-Version",
            "X-Inertia",
            "X-Inertia-Partial-Data",
            "X-Language",
            "X-Livewire",
            "X-Locale",
            "X-NF-Geo",
            "X-PJAX",
            "X-PJAX-Container",
            "X-Requested-With",
            "X-Store",
            "X-Theme",
            "X-UA-Device",
            "X-Up-Target",
            "X-Vercel-IP-Country",
            "X-Vercel-IP-Latitude",
            "X_Country_Code",
            "geoip_country_code",
        ] {
            assert!(survey(name).has_tailoring(), "{name}");
            assert!(survey(&name.to_ascii_lowercase()).has_tailoring(), "{name}");
            assert!(!survey(name).has_credentials() && !survey(name).has_override(), "{name}");
        }
    }

    #[test]
    fn other_kinds_cover_the_rest() {
        for name in ["X-Tenant", "X-Tenant-Id", "X-Wap-Profile", "Device-Id", "X-Up-Calling-Line-Id"] {
            assert!(survey(name).has_credentials(), "{name}");
        }
        for name in ["HX-Current-URL", "Next-Url", "X-Nextjs-Data", "Fastly-SSL", "X-Site"] {
            assert!(survey(name).has_forwarding(), "{name}");
        }
    }

    #[test]
    fn headers_of_browsers_requests_and_addresses_are_none() {
        for name in [
            "",
            "Accept",
            "Accept-CH",
            "Accept-Charset",
            "Accept-Encoding",
            "Accept-Language",
            "Access-Control-Request-Headers",
            "B3",
            "Baggage",
            "CDN-Loop",
            "CF-Connecting-IP",
            "CF-Ray",
            "CloudFront-Viewer-Address",
            "CloudFront-Viewer-Http-Version",
            "CloudFront-Viewer-TLS",
            "DNT",
            "Fastly-Client-IP",
            "Fastly-FF",
            "Priority",
            "Purpose",
            "Referer",
            "Sec-",
            "Sec-CH-UA",
            "Sec-CH-UA-Full-Version-List",
            "Sec-CH-UA-Mobile",
            "Sec-CH-UA-Platform",
            "Sec-Fetch-Dest",
            "Sec-Fetch-Mode",
            "Sec-Fetch-Site",
            "Sec-GPC",
            "Sec-WebSocket-Version",
            "Traceparent",
            "True-Client-IP",
            "Upgrade-Insecure-Requests",
            "User-Agent",
            "Via",
            "X-Amz-Cf-Id",
            "X-Amzn-Trace-Id",
            "X-Azure-Ref",
            "X-B3-TraceId",
            "X-Cloud-Trace-Context",
            "X-Envoy-Attempt-Count",
            "X-Forwarded-For",
            "X-Real-IP",
            "X-Request-Id",
            "X-Request-Start",
            "X-Turbo-Request-Id",
            "X-Varnish",
        ] {
            assert!(!survey(name).has_tailoring(), "{name}");
        }
    }
}
