//! Small pieces of the path of an event, each run so many times: what `scripts/bench instructions`
//! counts under valgrind. Counts do not depend on what else the machine does.
//!
//! `instructions PIECE TIMES DIRECTORY [ROWS]`
//!
//! With ROWS, the room has so many messages and the board so many entries; a directory that was
//! filled once is used as it is.

use std::{env, hint::black_box, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use carillon_domain::{
    App, Caller, ConnectionId, Done, Effect, MessageId, Refusal, Seq, TenantId, Timestamp, UserId,
    api::refused::Refusals,
    chat::{
        self, NewMessage,
        chat_history::ChatHistory,
        join_room::JoinRoom,
        returning::Returning,
        send_message::SendMessage,
        typing_indicator::{TypingIndicator, Typists},
    },
    contract::{Class, Command, Scope, find_command},
    credential::{Bearer, Token},
    dispatch::{Grant, Joined, dispatch},
    exam,
    identity::{Claims, Issue, Role},
    leaderboard::{self, Folded, Period, leaderboard_request::LeaderboardRequest},
    ports::{Admission, Clock, Credentials, Ids},
    presence::Presence,
    session::Heartbeat,
};
use carillon_gateway::parse_event;
use carillon_redis_adapter::event_frame;
use carillon_store::{Opener, SqlStore};
use serde_json::value::{RawValue, to_raw_value};

/// Time stands still: nothing depends on how long valgrind takes.
const NOW: Timestamp = Timestamp(1_700_000_000_000);
/// Two heartbeats are 15 s apart, two notes of somebody typing 3 s.
const STEP_MS: i64 = 3_000;

struct Still;
impl Clock for Still {
    fn now(&self) -> Timestamp {
        NOW
    }
}

struct UuidsV7;
impl Ids for UuidsV7 {
    fn uuid(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }
}

struct NoKeys;
#[async_trait::async_trait]
impl Credentials for NoKeys {
    async fn verify(&self, _: &App, _: &Token) -> Result<Bearer, Refusal> {
        Err(Refusal::Unavailable(None))
    }
}

struct Everybody;
impl Admission for Everybody {
    fn admit(&self, _: &Caller, _: Class) -> Result<(), Duration> {
        Ok(())
    }
}

/// The domain over a database of its own, and a member of the room of the examples.
struct World {
    app: App,
    caller: Caller,
}

impl World {
    async fn new(directory: &Path, rows: i64) -> anyhow::Result<Self> {
        let file = directory.join("instructions.db");
        let is_filled = file.exists();
        let url = format!("sqlite:{}", file.display());
        let store = Arc::new(SqlStore::open(&url, Opener::Server).await?);
        store.migrate().await?;
        let caller = Caller {
            app: None,
            tenant: TenantId::new("t")?,
            user: UserId::new("ana")?,
            name: "Ana".into(),
            avatar: None,
            role: Role::Student,
            connection: ConnectionId::new("c")?,
            namespace: "/",
            joined: Joined::default(),
            told: exam::Told::default(),
            grant: Grant::default(),
        };
        let app = App {
            store,
            clock: Arc::new(Still),
            ids: Arc::new(UuidsV7),
            admission: Arc::new(Everybody),
            credentials: Arc::new(NoKeys),
            presence: Presence::default(),
            typists: Typists::default(),
            chat: chat::Settings::default(),
            returning: Returning::new("this run".into()),
            refusals: Refusals::default(),
            exams: exam::State::new(
                exam::Settings {
                    grace: Duration::from_secs(2),
                    journal_key: exam::journal::JournalKey::new("a key for measuring"),
                },
                NOW,
            ),
            leaderboard: leaderboard::Settings::default(),
            recovery: carillon_domain::recovery::Settings::default(),
        };
        let world = Self { app, caller };
        if !is_filled {
            world.fill(rows).await?;
        }
        let done = world.ask(JoinRoom::NAME, &to_raw_value(&JoinRoom::example())?, NOW).await?;
        for effect in done.effects {
            if let Effect::Join { room, .. } = effect {
                world.caller.joined.insert(room);
            }
        }
        Ok(world)
    }

    /// Makes the caller's row, and so many messages and entries, each of a user of its own.
    async fn fill(&self, rows: i64) -> anyhow::Result<()> {
        let (tenant, room) = (&self.caller.tenant, SendMessage::example().room_id);
        let zone = self.app.leaderboard.zone(tenant);
        let start = Period::Weekly.span(zone, NOW)?.start;
        let mut tx = self.app.store.begin(tenant, Scope::Lane).await?;
        tx.create_room(tenant, &room, room.kind(), NOW).await?;
        let mut entries = Vec::new();
        for n in 0..rows.max(1) {
            let user = if n == rows / 2 {
                self.caller.user.clone()
            } else {
                UserId::new(format!("user-{n}"))?
            };
            let claims = Claims {
                user: user.clone(),
                name: Some(format!("User {n}")),
                role: Role::Student,
                email: None,
                avatar: None,
                issue: Issue::default(),
            };
            tx.provision_user(tenant, &claims, NOW).await?;
            if n == rows {
                break;
            }
            let message = NewMessage {
                id: MessageId::new(self.app.ids.uuid())?,
                room: room.clone(),
                sender: user.clone(),
                sender_name: format!("User {n}"),
                sender_avatar: None,
                message: SendMessage::example().message,
                message_type: "text".into(),
                file_url: None,
                file_name: None,
                file_size: None,
                client_msg_id: None,
                created_at: NOW,
            };
            tx.insert_message(tenant, message).await?;
            entries.push(Folded {
                period: Period::Weekly,
                period_start: start.clone(),
                user,
                specialty: None,
                // As good as random, and the same in every run.
                total_score: n * 7_919 % 10_000,
                exams_completed: 1,
                percent_sum: 50_000_000,
                average: 5_000,
                reached_at: NOW,
            });
        }
        for some in entries.chunks(1_000) {
            tx.replace_entries(tenant, &[], some, NOW).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn ask(&self, name: &str, payload: &RawValue, now: Timestamp) -> anyhow::Result<Done> {
        let route = find_command("/", name).context("no such command")?;
        Ok(dispatch(&self.app, &self.caller, route, payload, now, true).await?)
    }

    /// One command after the other, each as late as makes it news.
    async fn repeat<C: Command>(&self, command: &C, times: i64) -> anyhow::Result<()> {
        let payload = to_raw_value(command)?;
        for n in 0..times {
            let now = Timestamp(NOW.0 + n * STEP_MS);
            let done = self.ask(C::NAME, black_box(&payload), now).await?;
            ensure!(black_box(done).reply.get().len() > 2, "{} did nothing", C::NAME);
        }
        Ok(())
    }

    /// What everybody in the room hears of one message, `["receive-message",{…}]`.
    async fn told(&self) -> anyhow::Result<String> {
        let message = to_raw_value(&SendMessage::example())?;
        for effect in self.ask(SendMessage::NAME, &message, NOW).await?.effects {
            if let Effect::Emit(emit) = effect
                && emit.row.name == "receive-message"
            {
                return Ok(format!("[\"{}\",{}]", emit.row.name, emit.payload.get()));
            }
        }
        bail!("nobody was told")
    }
}

/// From the text of an event to its command, as it stands in an inbox.
fn decode(text: &str) -> anyhow::Result<SendMessage> {
    let (name, payload) = parse_event(text)?;
    ensure!(find_command("/", &name).is_some(), "no such command");
    Ok(serde_json::from_str(payload?.get())?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [piece, times, directory, rows @ ..] = &arguments[..] else {
        bail!("instructions PIECE TIMES DIRECTORY [ROWS]");
    };
    let times: i64 = times.parse()?;
    let rows = rows.first().map_or(Ok(0), |rows| rows.parse())?;
    let world = World::new(directory.as_ref(), rows).await?;
    match piece.as_str() {
        "dispatch-heartbeat" => world.repeat(&Heartbeat::example(), times).await?,
        "dispatch-typing" => world.repeat(&TypingIndicator::example(), times).await?,
        "dispatch-message" => world.repeat(&SendMessage::example(), times).await?,
        "history" => {
            let before = Some(Seq(rows / 2));
            world.repeat(&ChatHistory { before, ..ChatHistory::example() }, times).await?;
        }
        "own-rank" => world.repeat(&LeaderboardRequest::example(), times).await?,
        "decode-message" => {
            let message = serde_json::to_string(&SendMessage::example())?;
            let text = format!("[\"{}\",{message}]", SendMessage::NAME);
            for _ in 0..times {
                black_box(decode(black_box(&text))?);
            }
        }
        "frame-message" => {
            let event = world.told().await?;
            for _ in 0..times {
                black_box(event_frame("/", black_box(&event)));
            }
        }
        _ => bail!("no piece {piece}"),
    }
    Ok(())
}
