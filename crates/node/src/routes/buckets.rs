//! `/v1/buckets`, `/v1/subscriptions` and `/v1/logins`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use format::entry::Action;
use types::Reference;

use super::reply::{Body, Reply, name};
use crate::api::{
    ApiError, Bucket, BucketDetail, CreateBucketRequest, GrantRequest, LogEntry, Login, LoginRequest, Publication,
    PublishRequest, SubscribeRequest, Subscription,
};
use crate::buckets::parse_reader;
use crate::error::blocking;
use crate::listing::{show_bucket, show_bucket_detail, show_log};
use crate::node::Node;

/// Lists the buckets.
#[utoipa::path(get, path = "/v1/buckets", responses((status = 200, body = [Bucket])))]
pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Vec<Bucket>> {
    Json(node.buckets.list().iter().map(|bucket| show_bucket(bucket, &node.versions)).collect())
}

/// Makes a bucket.
#[utoipa::path(post, path = "/v1/buckets", request_body = CreateBucketRequest,
    responses((status = 200, body = Bucket), (status = "4XX", body = ApiError)))]
pub(super) async fn create(State(node): State<Arc<Node>>, Body(request): Body<CreateBucketRequest>) -> Reply<Bucket> {
    let buckets = Arc::clone(&node.buckets);
    let bucket = blocking(move || buckets.create(request.name)).await?;
    Ok(Json(show_bucket(&bucket, &node.versions)))
}

/// Shows a bucket.
#[utoipa::path(get, path = "/v1/buckets/{bucket}", params(("bucket" = String, Path)),
    responses((status = 200, body = BucketDetail), (status = 404, body = ApiError)))]
pub(super) async fn show(State(node): State<Arc<Node>>, Path(bucket): Path<String>) -> Reply<BucketDetail> {
    let bucket = node.buckets.find(&name(&bucket)?)?;
    Ok(Json(show_bucket_detail(&bucket, &node.versions)))
}

/// Removes a bucket that is not published. Its log and key are moved aside.
#[utoipa::path(delete, path = "/v1/buckets/{bucket}", params(("bucket" = String, Path)),
    responses((status = 200, body = Bucket), (status = "4XX", body = ApiError)))]
pub(super) async fn remove(State(node): State<Arc<Node>>, Path(bucket): Path<String>) -> Reply<Bucket> {
    let name = name(&bucket)?;
    let shown = show_bucket(&*node.buckets.find(&name)?, &node.versions);
    node.remove_bucket(&name).await?;
    Ok(Json(shown))
}

/// Shows a bucket's log.
#[utoipa::path(get, path = "/v1/buckets/{bucket}/log", params(("bucket" = String, Path)),
    responses((status = 200, body = [LogEntry]), (status = 404, body = ApiError)))]
pub(super) async fn log(State(node): State<Arc<Node>>, Path(bucket): Path<String>) -> Reply<Vec<LogEntry>> {
    let bucket = node.buckets.find(&name(&bucket)?)?;
    Ok(Json(show_log(&bucket)))
}

/// Lets someone read a bucket.
#[utoipa::path(post, path = "/v1/buckets/{bucket}/grant", params(("bucket" = String, Path)),
    request_body = GrantRequest, responses((status = 200, body = BucketDetail), (status = "4XX", body = ApiError)))]
pub(super) async fn grant(
    State(node): State<Arc<Node>>,
    Path(bucket): Path<String>,
    Body(request): Body<GrantRequest>,
) -> Reply<BucketDetail> {
    let bucket = node.buckets.find(&name(&bucket)?)?;
    let reader = parse_reader(&request.reader, |indexer| node.indexers.key_of(indexer))?;
    node.grant(&bucket, reader).await?;
    Ok(Json(show_bucket_detail(&bucket, &node.versions)))
}

/// Takes that back.
#[utoipa::path(post, path = "/v1/buckets/{bucket}/revoke", params(("bucket" = String, Path)),
    request_body = GrantRequest, responses((status = 200, body = BucketDetail), (status = "4XX", body = ApiError)))]
pub(super) async fn revoke(
    State(node): State<Arc<Node>>,
    Path(bucket): Path<String>,
    Body(request): Body<GrantRequest>,
) -> Reply<BucketDetail> {
    let bucket = node.buckets.find(&name(&bucket)?)?;
    let reader = parse_reader(&request.reader, |indexer| node.indexers.key_of(indexer))?;
    let granted = bucket.history().log.readers().any(|known| *known == reader);
    if !granted {
        return Err(crate::error::not_found("grant to", request.reader).hint("see: brant bucket show"));
    }
    node.append(&bucket, Action::Revoke { reader }).await?;
    Ok(Json(show_bucket_detail(&bucket, &node.versions)))
}

/// Publishes a bucket at an Indexer.
#[utoipa::path(post, path = "/v1/buckets/{bucket}/publish", params(("bucket" = String, Path)),
    request_body = PublishRequest, responses((status = 200, body = Publication), (status = "4XX", body = ApiError)))]
pub(super) async fn publish(
    State(node): State<Arc<Node>>,
    Path(bucket): Path<String>,
    Body(request): Body<PublishRequest>,
) -> Reply<Publication> {
    node.publish(&name(&bucket)?, request).await.map(Json)
}

/// Withdraws a bucket from its Indexer.
#[utoipa::path(post, path = "/v1/buckets/{bucket}/unpublish", params(("bucket" = String, Path)),
    responses((status = 200, body = String), (status = "4XX", body = ApiError)))]
pub(super) async fn unpublish(State(node): State<Arc<Node>>, Path(bucket): Path<String>) -> Reply<Reference> {
    node.unpublish(&name(&bucket)?).await.map(Json)
}

fn show_subscription(bucket: &crate::buckets::BucketState) -> Option<Subscription> {
    let policy = bucket.record().subscribed?.policy.into();
    let entries = bucket.history().log.length();
    Some(Subscription { bucket: bucket.name(), reference: bucket.subscribed()?, policy, entries })
}

/// Lists what is followed.
#[utoipa::path(get, path = "/v1/subscriptions", responses((status = 200, body = [Subscription])))]
pub(super) async fn subscriptions(State(node): State<Arc<Node>>) -> Json<Vec<Subscription>> {
    Json(node.buckets.list().iter().filter_map(|bucket| show_subscription(bucket)).collect())
}

/// Follows a reference.
#[utoipa::path(post, path = "/v1/subscriptions", request_body = SubscribeRequest,
    responses((status = 200, body = Subscription), (status = "4XX", body = ApiError)))]
pub(super) async fn subscribe(
    State(node): State<Arc<Node>>,
    Body(request): Body<SubscribeRequest>,
) -> Reply<Subscription> {
    node.subscribe(request).await.map(Json)
}

/// Stops following a reference.
#[utoipa::path(delete, path = "/v1/subscriptions/{bucket}", params(("bucket" = String, Path)),
    responses((status = 200, body = Bucket), (status = "4XX", body = ApiError)))]
pub(super) async fn unsubscribe(State(node): State<Arc<Node>>, Path(bucket): Path<String>) -> Reply<Bucket> {
    let name = name(&bucket)?;
    let shown = show_bucket(&*node.buckets.find(&name)?, &node.versions);
    node.unsubscribe(&name).await?;
    Ok(Json(shown))
}

/// Lists the accounts that the node has at Indexers.
#[utoipa::path(get, path = "/v1/logins", responses((status = 200, body = [Login])))]
pub(super) async fn logins(State(node): State<Arc<Node>>) -> Json<Vec<Login>> {
    Json(node.indexers.logins())
}

/// Uses an account at an Indexer from now on.
#[utoipa::path(post, path = "/v1/logins", request_body = LoginRequest,
    responses((status = 200, body = Login), (status = "4XX", body = ApiError)))]
pub(super) async fn login(State(node): State<Arc<Node>>, Body(request): Body<LoginRequest>) -> Reply<Login> {
    let login = node.indexers.login(&request.indexer, &request.token).await?;
    node.moved.notify_one();
    Ok(Json(login))
}
