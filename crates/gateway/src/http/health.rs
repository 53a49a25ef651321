//! Whether this node is well, for load balancers, operators and the frontends that ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::gateway::Gateway;

/// A probe that takes longer has its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the routes here need.
#[derive(Clone)]
pub struct Health {
    gateway: Arc<Gateway>,
    /// Set when the drain begins, before the listener closes.
    is_draining: Arc<AtomicBool>,
}

impl Health {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, is_draining: Arc::default() }
    }

    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    async fn is_database_there(&self) -> bool {
        let ask = async { self.gateway.domain.store.read().await?.heads().await };
        matches!(tokio::time::timeout(PATIENCE, ask).await, Ok(Ok(_)))
    }
}

/// `/health`, `/livez`, `/readyz` and `/api/stats`.
pub fn routes(health: Health) -> Router {
    Router::new()
        .route("/health", get(shaped))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/api/stats", get(stats))
        .with_state(health)
}

/// In the shape of the frontend's own server.
async fn shaped(State(health): State<Health>) -> Response {
    let timestamp = health.gateway.domain.clock.now().0;
    if health.is_database_there().await {
        let body = json!({ "status": "ok", "timestamp": timestamp, "database": "connected" });
        return Json(body).into_response();
    }
    let body = json!({
        "status": "error",
        "timestamp": timestamp,
        "database": "disconnected",
        "error": "the database does not answer",
    });
    (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
}

/// Whether to send clients here.
async fn ready(State(health): State<Health>) -> Response {
    let (status, text) = if health.is_draining.load(Ordering::Acquire) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if health.is_database_there().await {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "database")
    };
    let mut body = json!({ "status": text });
    // Local work goes on at full speed without other nodes: clients may come.
    if health.gateway.peers.as_ref().is_some_and(|peers| !peers.is_up()) {
        body["detail"] = "degraded".into();
    }
    (status, Json(body)).into_response()
}

/// In Evalon's shape.
async fn stats(State(health): State<Health>) -> Response {
    let sockets = health.gateway.domain.presence.all_connections();
    let body = json!({
        "success": true,
        "stats": {
            "totalSessions": 0,
            "activeSessions": 0,
            "monitoringRooms": 0,
            "activeConnections": sockets,
        },
        "timestamp": health.gateway.domain.clock.now(),
    });
    Json(body).into_response()
}

/// What is not served here, in the shape of every refusal.
pub async fn not_found() -> Response {
    let body =
        json!({ "ok": false, "code": "NOT_FOUND", "message": "Not found", "retryable": false });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}
