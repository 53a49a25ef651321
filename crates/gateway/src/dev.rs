//! `carillon dev`: everything embedded, for trying out and for building a frontend against.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use carillon_domain::{
    App as Domain, Caller, Cx, RoomId, TenantId, UserId,
    chat::RoomKind,
    contract::Scope,
    exam::define::{ExamInput, define},
    identity::{Claims, Issue, Role},
    ids::ExamId,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    app::{Node, Options},
    config::{self, ApiKey, App, Config, Secret, Span},
    log, token,
};

const DIRECTORY: &str = "carillon-data";
/// A working day and a half.
const TOKEN_TTL: Duration = Duration::from_hours(12);

/// The people of the demo tenant, one of every role.
const PEOPLE: [(&str, &str, Role); 6] = [
    ("student", "Sam Student", Role::Student),
    ("mentor", "Mira Mentor", Role::Mentor),
    ("admin", "Ada Admin", Role::ProgramAdmin),
    ("superadmin", "Sol Superadmin", Role::SuperAdmin),
    ("reviewer", "Rui Reviewer", Role::Reviewer),
    ("proctor", "Pat Proctor", Role::Proctor),
];

const ROOMS: [(&str, RoomKind); 2] =
    [("lobby", RoomKind::Direct), ("mentor:mentor", RoomKind::Mentor)];

/// An exam of every kind of question, open for good.
const EXAM: &str = r#"{
    "title": "The human heart",
    "topic": "Cardiology",
    "durationMinutes": 60,
    "attemptsAllowed": 100,
    "questions": [
        { "kind": "single_choice", "text": "How many chambers has it?",
          "options": ["Two", "Three", "Four"], "correct": 2 },
        { "kind": "multiple_choice", "text": "Which carry blood away from it?",
          "options": ["Aorta", "Vena cava", "Pulmonary artery"], "correct": [0, 2],
          "scoring": "partial", "points": 2 },
        { "kind": "numeric", "text": "Beats of a resting adult in a minute?",
          "correct": 70, "tolerance": 20 },
        { "kind": "short_text", "text": "The sac around it?", "correct": ["pericardium"] },
        { "kind": "essay", "text": "Why is the left wall thicker?", "points": 3 }
    ]
}"#;

/// Serves the demo on 127.0.0.1 until it is interrupted.
pub async fn run() -> anyhow::Result<()> {
    let config = config()?;
    log::start(&config);
    let app = config.apps.first().context("dev makes its own app")?;
    let extra = Router::new().route("/dev/login", post(login)).with_state(Arc::new(app.clone()));
    let node = Node::start(&config, Options { any_localhost_origin: true, extra }).await?;
    seed(node.domain(), &app.tenant).await?;
    print_welcome(node.address, app)?;
    node.run().await
}

/// The environment may move the ports and the database; the rest is fixed.
fn config() -> anyhow::Result<Config> {
    std::fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot create {DIRECTORY}"))?;
    let secret = secret(&Path::new(DIRECTORY).join("dev-secret"))?;
    let api_key = self::secret(&Path::new(DIRECTORY).join("dev-api-key"))?;
    let mut environment = config::environment()?;
    environment.retain(|name, _| {
        name.contains("__")
            || matches!(name.as_str(), "WEBSOCKET_PORT" | "REALTIME_PORT" | "PORT" | "DATABASE_URL")
    });
    environment.insert("JWT_SECRET".into(), secret);
    environment.entry("CARILLON_OPERATIONS__LISTEN".into()).or_insert("127.0.0.1:0".into());
    let mut config = Config::from_parts(None, &environment)?;
    config.server.listen.set_ip([127, 0, 0, 1].into());
    config.server.drain_notice = Span(Duration::ZERO);
    config.api_keys.push(ApiKey {
        name: "dev".into(),
        tenant: None,
        key: Some(Secret::from(api_key.as_str())),
        key_hash: None,
        scopes: vec!["*".into()],
    });
    config.log.filter = std::env::var("CARILLON_LOG__FILTER").unwrap_or_else(|_| "warn".into());
    Ok(config)
}

/// Kept beside the database, so that tokens outlive a restart.
fn secret(path: &Path) -> anyhow::Result<String> {
    if let Ok(secret) = std::fs::read_to_string(path) {
        return Ok(secret);
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("no randomness: {error}"))?;
    let secret: String = bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect();
    write_private(path, &secret).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(secret)
}

/// The people, two rooms and an exam, so that there is somebody to talk to and something to do.
async fn seed(domain: &Domain, tenant: &TenantId) -> anyhow::Result<()> {
    let now = domain.clock.now();
    let mut tx = domain.store.begin(tenant, Scope::Lane).await?;
    for (user, name, role) in PEOPLE {
        let claims = Claims {
            user: UserId::new(user)?,
            name: Some(name.into()),
            role,
            email: None,
            avatar: None,
            issue: Issue { at: Some(now), version: 0 },
        };
        tx.provision_user(tenant, &claims, now).await?;
    }
    for (room, kind) in ROOMS {
        let room = RoomId::new(room)?;
        tx.create_room(tenant, &room, kind, now).await?;
        for (user, ..) in &PEOPLE[..2] {
            tx.add_member(tenant, &room, &UserId::new(user)?, now).await?;
        }
    }
    tx.commit().await?;
    let system = Caller::system(tenant);
    let mut cx = Cx::new(domain, &system, Scope::Lane, now);
    let exam: ExamInput = serde_json::from_str(EXAM).context("the demo exam")?;
    define(&mut cx, ExamId::new("demo")?, &exam).await?;
    cx.commit().await?;
    Ok(())
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn print_welcome(address: SocketAddr, app: &App) -> anyhow::Result<()> {
    println!("Carillon is ready on http://{address}\n");
    println!("  io(\"http://{address}\", {{ auth: {{ token }} }})   // socket.io-client\n");
    for (user, name, role) in &PEOPLE[..3] {
        let token = token::sign(app, user, Some(name), *role, TOKEN_TTL)?;
        println!("{name} ({}):\n  {token}\n", role.as_str());
    }
    println!("An exam is running: socket.emit(\"join-exam\", {{ examId: \"demo\" }})\n");
    println!("Server API (the key is in {DIRECTORY}/dev-api-key):");
    println!(
        "  curl -H \"authorization: Bearer $(cat {DIRECTORY}/dev-api-key)\" http://{address}/v1/exams\n"
    );
    println!(
        "More users: curl -X POST http://{address}/dev/login -H 'content-type: application/json' \\"
    );
    println!("  -d '{{\"user\":\"reviewer\"}}'");
    Ok(())
}

/// Somebody by id (of whatever name frontends use for it), or anybody of a role.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    #[serde(alias = "userId", alias = "id", alias = "email")]
    user: Option<String>,
    name: Option<String>,
    role: Option<Role>,
}

/// A token for anybody who asks: a demo has no passwords.
async fn login(
    State(app): State<Arc<App>>,
    Json(login): Json<Login>,
) -> Result<Json<Value>, StatusCode> {
    let known = PEOPLE.iter().find(|(user, _, role)| match &login.user {
        Some(id) => id == user,
        None => login.role.unwrap_or(Role::Student) == *role,
    });
    let user = login.user.or(known.map(|(user, ..)| (*user).to_owned()));
    let user = user.ok_or(StatusCode::BAD_REQUEST)?;
    let role = login.role.or(known.map(|(_, _, role)| *role)).unwrap_or(Role::Student);
    let name = login.name.or(known.map(|(_, name, _)| (*name).to_owned()));
    let token = token::sign(&app, &user, name.as_deref(), role, TOKEN_TTL)
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(json!({
        "token": token,
        "accessToken": token,
        "user": { "id": user, "name": name, "role": role },
    })))
}
