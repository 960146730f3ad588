//! The shop's HTTP API.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request, State},
    http::{StatusCode, header::LOCATION},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use serde::Serialize;

use crate::{
    calls::Calls,
    problem::Problem,
    store::{NewPost, Post, Store, User, UserWrite},
};

/// The API, each read slower by `delay` and each call counted; `/calls` and `/healthz` are neither.
pub(crate) fn router(store: Store, calls: Calls, delay: Duration) -> Router {
    Router::new()
        .route("/api/users", get(list_users))
        .route("/api/users/{id}", get(get_user).put(put_user).patch(change_user).delete(delete_user))
        .route("/api/posts/", get(list_posts).post(add_post))
        .route("/api/posts/{id}", get(get_post))
        .with_state(store)
        .route_layer(middleware::from_fn_with_state(delay, slow_down_reads))
        .route_layer(middleware::from_fn_with_state(calls.clone(), count))
        .route("/calls", get(move || report(calls)))
        .route("/healthz", get(|| async { "ok" }))
}

/// The response to a write.
#[derive(Serialize)]
struct Message {
    message: &'static str,
}

const USER_UPDATED: Message = Message { message: "User updated" };
const POST_CREATED: Message = Message { message: "Post created" };

async fn count(State(calls): State<Calls>, route: MatchedPath, request: Request, next: Next) -> Response {
    calls.count(request.method().as_str(), route.as_str());
    next.run(request).await
}

async fn slow_down_reads(State(delay): State<Duration>, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        tokio::time::sleep(delay).await;
    }
    next.run(request).await
}

async fn report(calls: Calls) -> Json<BTreeMap<String, u64>> {
    Json(calls.snapshot())
}

async fn list_users(State(store): State<Store>) -> Result<Json<Vec<User>>, Problem> {
    Ok(Json(store.users().await?))
}

async fn get_user(State(store): State<Store>, Path(id): Path<i32>) -> Result<Json<User>, Problem> {
    store.user(id).await?.map(Json).ok_or(Problem::NotFound)
}

async fn put_user(
    State(store): State<Store>,
    Path(id): Path<i32>,
    Json(user): Json<UserWrite>,
) -> Result<Json<Message>, Problem> {
    store.put_user(id, user).await?;
    Ok(Json(USER_UPDATED))
}

async fn change_user(
    State(store): State<Store>,
    Path(id): Path<i32>,
    Json(change): Json<UserWrite>,
) -> Result<Json<Message>, Problem> {
    if store.change_user(id, change).await? { Ok(Json(USER_UPDATED)) } else { Err(Problem::NotFound) }
}

async fn delete_user(State(store): State<Store>, Path(id): Path<i32>) -> Result<StatusCode, Problem> {
    if store.delete_user(id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::NotFound) }
}

async fn list_posts(State(store): State<Store>) -> Result<Json<Vec<Post>>, Problem> {
    Ok(Json(store.posts().await?))
}

async fn get_post(State(store): State<Store>, Path(id): Path<i32>) -> Result<Json<Post>, Problem> {
    store.post(id).await?.map(Json).ok_or(Problem::NotFound)
}

async fn add_post(
    State(store): State<Store>,
    Json(post): Json<NewPost>,
) -> Result<impl IntoResponse, Problem> {
    let id = store.add_post(post).await?;
    let location = [(LOCATION, format!("/api/posts/{id}"))];
    Ok((StatusCode::CREATED, location, Json(POST_CREATED)))
}
