//! The shop's data, in Postgres. Its tables are made by `examples/shop/postgres.yaml`.

use std::time::Duration;

use deadpool_postgres::{
    BuildError, Client, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime,
};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Config, NoTls, Row};
use tracing::warn;

const CONNECTIONS: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the database gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// No connection was to be had.
    #[error("no connection: {0}")]
    Connection(#[from] PoolError),
    /// A statement failed.
    #[error("statement failed: {0}")]
    Statement(#[from] tokio_postgres::Error),
}

/// A user of the shop.
#[derive(Serialize)]
pub(crate) struct User {
    id: i32,
    name: String,
    email: String,
}

impl From<Row> for User {
    fn from(row: Row) -> Self {
        Self { id: row.get("id"), name: row.get("name"), email: row.get("email") }
    }
}

/// A write of a user. Members that are absent keep their values; a new user has an empty text in their place.
#[derive(Deserialize)]
pub(crate) struct UserWrite {
    name: Option<String>,
    email: Option<String>,
}

/// A post in the shop's blog.
#[derive(Serialize)]
pub(crate) struct Post {
    /// Given by the database.
    id: i32,
    author: String,
    title: String,
}

impl From<Row> for Post {
    fn from(row: Row) -> Self {
        Self { id: row.get("id"), author: row.get("author"), title: row.get("title") }
    }
}

/// A new post.
#[derive(Deserialize)]
pub(crate) struct NewPost {
    /// The name of its author; `anonymous` where it is absent.
    #[serde(default = "anonymous")]
    author: String,
    title: String,
}

fn anonymous() -> String {
    "anonymous".to_owned()
}

/// A pool of connections to the database.
#[derive(Clone)]
pub(crate) struct Store {
    pool: Pool,
}

impl Store {
    /// Waits until the database answers, so that the shop may start before it.
    pub(crate) async fn when_it_answers(mut config: Config) -> Result<Self, BuildError> {
        config.connect_timeout(CONNECT_TIMEOUT);
        let manager = Manager::from_config(
            config,
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Verified },
        );
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .wait_timeout(Some(WAIT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()?;
        while let Err(error) = pool.get().await {
            warn!(%error, "waiting for the database");
            tokio::time::sleep(RETRY_AFTER).await;
        }
        Ok(Self { pool })
    }

    pub(crate) async fn users(&self) -> Result<Vec<User>, StoreError> {
        let rows = self.client().await?.query("select * from users order by id limit 100", &[]).await?;
        Ok(rows.into_iter().map(User::from).collect())
    }

    pub(crate) async fn user(&self, id: i32) -> Result<Option<User>, StoreError> {
        let row = self.client().await?.query_opt("select * from users where id = $1", &[&id]).await?;
        Ok(row.map(User::from))
    }

    /// Makes or changes a user.
    pub(crate) async fn put_user(&self, id: i32, user: UserWrite) -> Result<(), StoreError> {
        let statement = "insert into users (id, name, email) values ($1, coalesce($2, ''), coalesce($3, '')) \
            on conflict (id) do update set name = coalesce($2, users.name), email = coalesce($3, users.email)";
        self.client().await?.execute(statement, &[&id, &user.name, &user.email]).await?;
        Ok(())
    }

    /// Returns true if there was such a user.
    pub(crate) async fn change_user(&self, id: i32, change: UserWrite) -> Result<bool, StoreError> {
        let statement =
            "update users set name = coalesce($2, name), email = coalesce($3, email) where id = $1";
        Ok(self.client().await?.execute(statement, &[&id, &change.name, &change.email]).await? > 0)
    }

    /// True if there was such a user.
    pub(crate) async fn delete_user(&self, id: i32) -> Result<bool, StoreError> {
        Ok(self.client().await?.execute("delete from users where id = $1", &[&id]).await? > 0)
    }

    pub(crate) async fn posts(&self) -> Result<Vec<Post>, StoreError> {
        let rows = self.client().await?.query("select * from posts order by id desc limit 100", &[]).await?;
        Ok(rows.into_iter().map(Post::from).collect())
    }

    pub(crate) async fn post(&self, id: i32) -> Result<Option<Post>, StoreError> {
        let row = self.client().await?.query_opt("select * from posts where id = $1", &[&id]).await?;
        Ok(row.map(Post::from))
    }

    /// Returns the id of the new post.
    pub(crate) async fn add_post(&self, post: NewPost) -> Result<i32, StoreError> {
        let statement = "insert into posts (author, title) values ($1, $2) returning id";
        Ok(self.client().await?.query_one(statement, &[&post.author, &post.title]).await?.get("id"))
    }

    async fn client(&self) -> Result<Client, PoolError> {
        self.pool.get().await
    }
}
