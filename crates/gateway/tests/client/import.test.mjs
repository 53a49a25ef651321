// Moving from an existing database: what is in it, odd rows included, is here afterwards, once,
// and the clients find it.
import assert from "node:assert/strict";
import { test } from "node:test";
import pg from "pg";
import { DATABASES, POSTGRES, Person, Server, freshPostgres } from "./harness.mjs";

const uuid = (kind, n) => `${String(kind).padStart(8, "0")}-0000-4000-8000-${String(n).padStart(12, "0")}`;
const user = (n) => uuid(1, n);
const [ANA, BEN, CEM, DAN] = [1, 2, 3, 4].map(user);
const NOBODY = user(99);
const [EXAM, HARD, EMPTY] = [1, 2, 3].map((n) => uuid(2, n));
const question = (n) => uuid(3, n);
const result = (n) => uuid(4, n);
const message = (n) => uuid(5, n);
const notice = (n) => uuid(6, n);
const [GROUP, ORPHANED, ROOMLESS] = [1, 2, 3].map((n) => uuid(7, n));

const SCHEMA = `
CREATE TABLE users (id uuid PRIMARY KEY, email text UNIQUE, password_hash text, name text,
  role varchar(50) DEFAULT 'STUDENT', avatar text, status varchar(20) DEFAULT 'PENDING',
  target_specialty varchar(100), created_at timestamptz, updated_at timestamptz);
CREATE TABLE exams (id uuid PRIMARY KEY, title text, description text, duration_minutes int,
  topic text, subtopics text[], difficulty text, mode text, scheduled_start timestamptz,
  scheduled_end timestamptz, proctoring_config jsonb, created_by uuid, created_at timestamptz);
CREATE TABLE questions (id uuid PRIMARY KEY, exam_id uuid, text text, options text[],
  correct_answer_index int, explanation text, points int DEFAULT 1, created_at timestamptz);
CREATE TABLE exam_results (id uuid PRIMARY KEY, exam_id uuid, user_id uuid, score int,
  total_questions int, answers int[] NOT NULL, audit_log jsonb, completed_at timestamptz);
CREATE TABLE chat_rooms (id varchar(255) PRIMARY KEY, name varchar(255), type varchar(50),
  participants uuid[], metadata jsonb, created_at timestamptz);
CREATE TABLE chat_messages (id uuid PRIMARY KEY, room_id varchar(255), sender_id uuid,
  sender_name varchar(255), sender_avatar text, message text, message_type varchar(50),
  file_url text, file_name varchar(255), file_size int, is_read boolean, created_at timestamptz);
CREATE TABLE notifications (id uuid PRIMARY KEY, user_id uuid, type varchar(50), title varchar(255),
  message text, data jsonb, is_read boolean, priority varchar(20), action_url text,
  created_at timestamptz);
CREATE TABLE study_groups (id uuid PRIMARY KEY, name varchar(255), description text,
  room_id varchar(255) UNIQUE, creator_id uuid, members uuid[], max_members int DEFAULT 10,
  specialty varchar(100), is_public boolean, created_at timestamptz);
`;

const AT = "2026-01-05T10:00:00.123Z";
const at = (seconds) => new Date(Date.parse(AT) + seconds * 1000).toISOString();

/** A database as it was, with what is wrong in it. */
async function source() {
  const url = await freshPostgres();
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(SCHEMA);
  const insert = async (table, rows) => {
    for (const row of rows) {
      const names = Object.keys(row);
      const places = names.map((_, n) => `$${n + 1}`);
      await client.query(`INSERT INTO ${table} (${names}) VALUES (${places})`, Object.values(row));
    }
  };
  await insert("users", [
    { id: ANA, email: "ana@school.example", password_hash: "x", name: "Ana", role: "STUDENT", status: "VERIFIED", target_specialty: "Cardiology", created_at: AT },
    { id: BEN, email: "ben@school.example", name: " ", role: "STUDENT", status: "VERIFIED", avatar: "javascript:alert(1)", created_at: null },
    { id: CEM, email: null, name: "Cem", role: "GUARDIAN", status: "ACTIVE", created_at: "infinity" },
    { id: DAN, email: "dan@school.example", name: "Dan", role: "MENTOR", status: "VERIFIED", created_at: AT },
  ]);
  await insert("exams", [
    { id: EXAM, title: "Anatomy", duration_minutes: 30, topic: "Cardiology", created_at: AT },
    { id: HARD, title: "", duration_minutes: -5, topic: "Surgery", scheduled_start: at(60), scheduled_end: AT, created_at: AT },
    { id: EMPTY, title: "Without questions", created_at: AT },
  ]);
  const asked = (n, exam, correct, rest = {}) => ({
    id: question(n), exam_id: exam, text: `Question ${n}`, options: ["a", "b", "c"], correct_answer_index: correct, created_at: AT, ...rest,
  });
  await insert("questions", [
    asked(2, EXAM, 2), asked(1, EXAM, 1), asked(3, EXAM, 0, { points: 2, created_at: at(1) }),
    asked(4, HARD, 1, { options: ["a", null] }), asked(5, HARD, 7), asked(6, HARD, 0, { points: -1 }),
    asked(7, uuid(2, 99), 1),
  ]);
  const done = (n, exam, who, score, answers, rest = {}) => ({
    id: result(n), exam_id: exam, user_id: who, score, total_questions: 3, answers, completed_at: at(n * 100), ...rest,
  });
  await insert("exam_results", [
    done(1, EXAM, ANA, 3, [1, 2, 0]),
    done(2, EXAM, BEN, 67, [1, 2, null]), // a percentage
    done(3, EXAM, ANA, 1, [1, null, -1]), // a second attempt
    done(4, EXAM, ANA, 1, [1, null, -1], { completed_at: at(303) }), // twice
    done(5, EXAM, CEM, 2, [9, 2, 0, 1], { total_questions: 4 }),
    done(6, EXAM, NOBODY, 3, [1, 2, 0]),
    done(7, EXAM, DAN, 3, [1, 2, 0], { completed_at: null }),
    done(8, EMPTY, ANA, 0, []),
    done(9, HARD, BEN, 3, [1, 7, 0]),
    done(10, null, BEN, 3, [1]),
  ]);
  await insert("chat_rooms", [
    { id: "algebra", name: "Algebra", type: "DIRECT", participants: [ANA, BEN, NOBODY, null], metadata: { floor: 2 }, created_at: AT },
    { id: `study-group:${GROUP}`, name: "Hearts", type: "STUDY_GROUP", participants: [ANA, BEN, CEM], created_at: AT },
    { id: "hall", name: null, type: "HALL", participants: null, created_at: null },
    { id: "exam:1", name: "Exam", type: "EXAM", participants: [ANA], created_at: AT },
    { id: "x".repeat(200), name: "Long", type: "DIRECT", participants: [ANA], created_at: AT },
  ]);
  const said = (n, room, who, text, rest = {}) => ({
    id: message(n), room_id: room, sender_id: who, sender_name: "Ana", message: text, message_type: "text", is_read: true, created_at: at(n), ...rest,
  });
  await insert("chat_messages", [
    said(2, "algebra", BEN, "two", { sender_name: "" }),
    said(1, "algebra", ANA, "one <script>x</script>"),
    said(3, "algebra", ANA, "three", { is_read: false, file_size: -1, file_url: "javascript:1" }),
    said(4, "algebra", NOBODY, "four", { sender_name: "Gone", is_read: false }),
    said(5, "algebra", ANA, " "),
    said(6, "algebra", ANA, "", { file_url: "/uploads/a.pdf", file_name: "a.pdf", is_read: false, created_at: null }),
    said(7, `mentor:${DAN}`, ANA, "may I ask?"),
    said(8, "exam:1", ANA, "psst"),
    said(9, null, ANA, "nowhere"),
    said(10, `study-group:${GROUP}`, ANA, "hearts", { is_read: false }),
  ]);
  const told = (n, who, rest = {}) => ({
    id: notice(n), user_id: who, type: "SYSTEM", title: "Hello", message: "There", data: { n }, is_read: false, priority: "high", action_url: "/exams", created_at: AT, ...rest,
  });
  await insert("notifications", [
    told(1, ANA), told(2, ANA, { is_read: true, priority: "extreme", action_url: "javascript:1" }),
    told(3, NOBODY), told(4, ANA, { title: " ", message: null }), told(5, BEN, { type: null, created_at: null }),
  ]);
  const group = (id, rest = {}) => ({
    id, name: "Hearts", room_id: `study-group:${id}`, creator_id: ANA, members: [ANA, BEN], max_members: 10, is_public: true, created_at: AT, ...rest,
  });
  await insert("study_groups", [
    group(GROUP, { creator_id: CEM, members: [BEN, ANA, NOBODY], max_members: 1 }),
    group(ORPHANED, { members: [NOBODY] }),
    group(ROOMLESS, { room_id: "the attic" }),
  ]);
  return { url, insert, said, done, client };
}

/** The report as an object: numbers per table, and how many per reason. */
function read(report) {
  const tables = {};
  let table;
  for (const line of report.split("\n")) {
    const numbers = line.match(/^([\w ]+): (\d+) imported, (\d+) already there, (\d+) skipped$/);
    const reason = line.match(/^ {2}(skipped|mended) (\d+): (.*) \([^()]*\)$/);
    if (numbers) {
      table = { numbers: numbers.slice(2).map(Number), skipped: {}, mended: {} };
      tables[numbers[1]] = table;
    } else if (reason) table[reason[1]][reason[3]] = Number(reason[2]);
  }
  return tables;
}

const numbers = (report) => Object.fromEntries(Object.entries(read(report)).map(([name, table]) => [name, table.numbers]));

function checkReport(report) {
  const tables = read(report);
  assert.deepEqual(numbers(report), {
    users: [4, 0, 0],
    exams: [2, 0, 1],
    questions: [5, 0, 2],
    exam_results: [5, 0, 5],
    study_groups: [1, 0, 2],
    chat_rooms: [tables.chat_rooms.numbers[0], tables.chat_rooms.numbers[1], 2],
    "room members": [2, 0, 2],
    chat_messages: [7, 0, 3],
    notifications: [3, 0, 2],
  });
  assert.deepEqual(tables.users.mended, {
    "an avatar that is no link: without": 1,
    "an unknown role: STUDENT": 1,
    "an unknown status: PENDING": 1,
    "without a date: the time of the import": 2,
    "without a name: called by the e-mail address, or by the id": 1,
  });
  assert.deepEqual(tables.exams.skipped, { "without questions": 1 });
  assert.deepEqual(tables.questions.skipped, { "correct: the index of one option": 1, "the exam does not exist": 1 });
  assert.deepEqual(tables.exam_results.skipped, {
    "the exam does not exist": 1,
    "the exam does not exist, or was skipped": 1,
    "the same submission again": 1,
    "the user does not exist, or was skipped": 1,
    "without a date": 1,
  });
  assert.deepEqual(tables.exam_results.mended, {
    "a negative answer: none": 1,
    "an answer that is no option: wrong": 1,
    "an answer to a question that was skipped: left out": 1,
    "another number of questions: that of the paper": 2,
    "another score than the answers give: counted again": 1,
    "more answers than questions: the rest was left out": 1,
    "the score was a percentage: right answers": 1,
  });
  assert.deepEqual(tables.study_groups.skipped, {
    "nobody is in it": 1,
    "the room is not named study-group:…, with at most 128 characters": 1,
  });
  assert.deepEqual(tables.chat_messages.skipped, {
    "nothing to show": 1,
    "the room is named user:… or exam:…, which is no chat": 1,
    "without a room": 1,
  });
  assert.deepEqual(tables.notifications.skipped, { "nothing to show": 1, "the user does not exist, or was skipped": 1 });
}

const told = (title, run) => {
  if (POSTGRES.length === 0) test(title, { skip: "no PostgreSQL to read from" }, () => {});
  else for (const database of DATABASES) test(`${title} (${database.name})`, { timeout: 90_000 }, () => run(database));
};

told("an existing database is taken over, once, with what is odd in it", async (database) => {
  const old = await source();
  const server = new Server(await database.fresh());
  const people = [];
  const person = async (id) => {
    const one = await Person.connect(server, id, { claims: { name: undefined } });
    people.push(one);
    return one;
  };
  const account = async (id) => (await server.api("GET", `/v1/users/${id}`)).body;
  const take = (...more) => server.run("import", "--from", old.url, ...more);
  try {
    const dry = await take("--dry-run");
    assert.match(dry, /A dry run: nothing was written\.$/);
    checkReport(dry);

    const first = await take();
    checkReport(first);
    assert.match(first, /leaderboards: 3 users, \d+ entries changed$/);

    const again = await take();
    for (const [name, [imported, kept, skipped]] of Object.entries(numbers(again))) {
      const before = numbers(first)[name];
      assert.deepEqual([imported, kept, skipped], [0, before[0] + before[1], before[2]], name);
      assert.deepEqual(read(again)[name].mended, {}, name);
    }
    assert.match(again, /leaderboards: 3 users, 0 entries changed$/);
    assert.deepEqual(numbers(await take("--dry-run")), numbers(again));

    for (const exam of [EXAM, HARD]) assert.match(await server.run("exam", "verify", exam), /everything fits\.$/);

    await server.restart();
    const [ana, ben] = [await person(ANA), await person(BEN)];

    // What was said, in order, and what is unread.
    const algebra = await ana.joins("algebra");
    assert.deepEqual(
      algebra.messages.map((m) => [m.id, m.seq, m.sender_name, m.message, m.is_read]),
      [
        [message(1), 1, "Ana", "one", true],
        [message(2), 2, "ben", "two", true],
        [message(3), 3, "Ana", "three", false],
        [message(4), 4, "Gone", "four", false],
        [message(6), 5, "Ana", "a.pdf", false],
      ],
    );
    assert.deepEqual([algebra.lastReadSeq, algebra.unreadCount], [3, 1]);
    const { lastReadSeq, unreadCount } = await ben.joins("algebra");
    assert.deepEqual([lastReadSeq, unreadCount], [2, 3]);
    assert.equal(algebra.messages[0].created_at, at(1));
    assert.deepEqual([algebra.messages[2].file_url, algebra.messages[2].file_size], [null, null]);
    const rooms = (await server.api("GET", "/v1/rooms")).body.items;
    assert.deepEqual(
      rooms.map((room) => [room.id, room.name, room.type, room.memberCount, room.lastSeq]),
      [
        ["algebra", "Algebra", "DIRECT", 2, 5],
        ["hall", "Room hall", "DIRECT", 0, 0],
        [`mentor:${DAN}`, `Room mentor:${DAN}`, "MENTOR", 1, 1],
        [`study-group:${GROUP}`, "Hearts", "STUDY_GROUP", 2, 1],
      ],
    );
    const mentors = await ana.joins(`mentor:${DAN}`);
    assert.deepEqual(mentors.messages.map((m) => m.message), ["may I ask?"]);

    // The exam is over for her: the newest attempt, and its result.
    ana.says("join-exam", { examId: EXAM });
    const joined = await ana.hears("exam-joined");
    assert.deepEqual([joined.exam.title, joined.session.status], ["Anatomy", "COMPLETED"]);
    assert.deepEqual([joined.result.score, joined.result.total_questions, joined.result.answers], [1, 3, [1]]);
    assert.equal(joined.result.completed_at, at(300));
    const results = (await server.api("GET", `/v1/exams/${EXAM}/results`)).body.items;
    assert.deepEqual(
      results.map((r) => [r.id, r.userId, r.score, r.points]).sort(),
      [[result(1), ANA, 3, 4], [result(2), BEN, 2, 2], [result(3), ANA, 1, 1], [result(5), CEM, 2, 3]],
    );

    // The board counts right answers, not percentages.
    ana.says("leaderboard-request", { period: "all_time" });
    const board = await ana.hears("leaderboard-data");
    assert.deepEqual(
      board.entries.map((e) => [e.user_id, e.user_name, e.total_score, e.exams_completed, e.specialty]),
      [[BEN, "ben", 4, 2, null], [ANA, "Ana", 4, 2, "Cardiology"], [CEM, "Cem", 2, 1, null]],
    );

    // Nothing old rings again; what was unread is unread.
    const told = await ana.asks("notification-read", { notificationId: notice(2) });
    assert.equal(told.unreadCount, 1, JSON.stringify(told));
    await ana.settled();
    assert.deepEqual(ana.unheard("new-notification"), []);

    // The group, in the order of its members.
    const group = (await server.api("GET", `/v1/study-groups/${GROUP}`)).body;
    assert.deepEqual([group.name, group.owner_id, group.members, group.max_members], ["Hearts", BEN, [BEN, ANA], 2]);
    const hearts = await ben.joins(`study-group:${GROUP}`);
    assert.deepEqual(hearts.messages.map((m) => m.message), ["hearts"]);

    // Life goes on here, and there; then what is new there comes after it.
    const own = await ana.asks("send-message", { roomId: "algebra", message: "from here" });
    assert.equal(own.seq, 6, JSON.stringify(own));
    const eve = user(5);
    await person(eve);
    assert.deepEqual([(await account(eve)).managed, (await account(eve)).name], [false, eve]);
    await old.insert("users", [{ id: eve, email: "eve@school.example", name: "Eve", role: "STUDENT", status: "VERIFIED", created_at: AT }]);
    await old.insert("chat_messages", [old.said(11, "algebra", BEN, "from there", { is_read: false })]);
    await old.insert("exam_results", [old.done(11, EXAM, eve, 3, [1, 2, 0])]);
    if (database.name === "sqlite") {
      await assert.rejects(take(), /stop the server for the import: .*another server uses/);
      for (const one of people.splice(0)) one.leaves();
      await server.terminate();
    }
    const more = read(await take());
    const brought = Object.entries(more).map(([name, table]) => [name, table.numbers[0]]).filter(([, count]) => count > 0);
    assert.deepEqual(brought, [["users", 1], ["exam_results", 1], ["chat_messages", 1]]);
    if (database.name === "sqlite") await server.restart();
    const later = await (await person(BEN)).joins("algebra");
    assert.deepEqual([(await account(eve)).managed, (await account(eve)).name], [true, "Eve"]);
    assert.deepEqual(later.messages.slice(-2).map((m) => [m.seq, m.message]), [[6, "from here"], [7, "from there"]]);
    assert.match(await server.run("exam", "verify", EXAM), /5 attempts, .*everything fits\.$/);
  } catch (error) {
    console.error(server.log.slice(-20).join("\n"));
    throw error;
  } finally {
    await old.client.end();
    for (const one of people) one.leaves();
    if (server.child) await server.dispose();
  }
});

told("a source that cannot be read is one sentence", async (database) => {
  const server = new Server(await database.fresh());
  const from = (url) => server.run("import", "--from", url);
  await assert.rejects(from("sqlite:old.db"), /^Error: carillon: --from must begin with postgres:\/\/\n$/);
  await assert.rejects(from("postgres://nobody@127.0.0.1:1/none"), /^Error: carillon: cannot connect to the source: [^\n]*\n$/);
  await assert.rejects(from(await freshPostgres()), /^Error: carillon: the source has no table users\n$/);
});
