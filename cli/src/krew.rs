//! Tests of the template of krew's manifest, `krew.yaml`.

use serde_json::{Value, json};

/// Returns the manifest of a release.
fn manifest() -> Value {
    let mut text = include_str!("../krew.yaml").to_owned();
    let checksum = "0".repeat(64);
    for (placeholder, value) in [
        ("@VERSION@", concat!("v", env!("CARGO_PKG_VERSION"))),
        ("@HOMEPAGE@", "https://larder.example"),
        ("@RELEASES@", "https://larder.example/releases"),
        ("@SHA256_LINUX_AMD64@", &checksum),
        ("@SHA256_LINUX_ARM64@", &checksum),
        ("@SHA256_DARWIN_ARM64@", &checksum),
    ] {
        assert!(text.contains(placeholder), "no {placeholder}");
        text = text.replace(placeholder, value);
    }
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    assert!(lines.into_iter().all(|line| !line.contains('@')), "a placeholder is left in {text}");
    serde_yaml::from_str(&text).unwrap()
}

/// <https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/>
#[test]
fn manifest_has_all_that_krew_requires() {
    let manifest = manifest();
    assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
    assert_eq!((&manifest["kind"], &manifest["metadata"]["name"]), (&json!("Plugin"), &json!("larder")));
    let spec = &manifest["spec"];
    for field in ["version", "homepage", "shortDescription", "description"] {
        assert!(spec[field].as_str().is_some_and(|text| !text.trim().is_empty()), "no {field}");
    }
    assert!(spec["version"].as_str().unwrap().starts_with('v'));
    assert!(spec["shortDescription"].as_str().unwrap().len() <= 50, "krew's index has no room for it");
    let platforms = spec["platforms"].as_array().unwrap();
    assert!(!platforms.is_empty());
    for platform in platforms {
        let labels = &platform["selector"]["matchLabels"];
        let (os, arch) = (labels["os"].as_str().unwrap(), labels["arch"].as_str().unwrap());
        assert!(platform["uri"].as_str().unwrap().ends_with(&format!("-{os}-{arch}.tar.gz")), "{platform}");
        assert_eq!((&platform["bin"], platform["sha256"].as_str().unwrap().len()), (&json!("larder"), 64));
    }
}
