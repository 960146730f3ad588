//! The sidecar in front of common servers: Express, nginx and Go's net/http.

use super::harness::{Application, Policy, Sidecar, exchange};

const POLICY: &str = r#"
routes:
- name: user
  match: {path: "/api/users/{id}"}
  ttl: 60s
  tags: ["user:{id}"]
invalidation:
  onWrite:
  - match: {path: "/api/users/{id}"}
    purge: {tags: ["user:{id}"]}
"#;

#[tokio::test]
async fn a_write_through_the_sidecar_makes_a_real_applications_responses_stale() {
    for application in [Application::express().await, Application::go().await] {
        let policy = Policy::new(POLICY);
        let sidecar = Sidecar::start(&policy, application.address).await;
        for id in ["1", "me@x.com"] {
            let path = format!("/api/users/{id}");
            let version = async || {
                let answer = sidecar.get(&path).await;
                let user: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
                (answer.hit().is_some(), user["version"].as_u64().unwrap())
            };
            assert_eq!(version().await, (false, 0), "{path}");
            assert_eq!(version().await, (true, 0), "{path}");
            assert_eq!(sidecar.put(&path).await.status, 200, "{path}");
            assert_eq!(version().await, (false, 1), "{path}");
        }
    }
}

#[tokio::test]
async fn an_account_page_of_nginx_is_never_stored() {
    let application = Application::nginx().await;
    let policy = "routes: [{name: account, match: {path: /account}, ttl: 60s}]";
    let policy = Policy::new(policy);
    let sidecar = Sidecar::start(&policy, application.address).await;
    let account = async |cookie: &str| sidecar.get_with("/account", &[("cookie", cookie)]).await.body;
    assert_eq!(account("session=a").await, "account of session=a");
    assert_eq!(account("session=b").await, "account of session=b");
}

#[tokio::test]
async fn a_health_check_without_a_host_is_served_as_without_the_sidecar() {
    for application in [Application::nginx().await, Application::express().await, Application::go().await] {
        let sidecar = Sidecar::bare(application.address).await;
        for address in [application.address, sidecar.address] {
            let response = exchange(address, "OPTIONS / HTTP/1.0\r\n\r\n").await;
            let response = String::from_utf8(response).unwrap();
            assert_eq!(response.split(' ').nth(1), Some("200"), "{response}");
        }
    }
}
