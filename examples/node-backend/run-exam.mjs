// A school's backend and one of its students, in one file: run it against `carillon dev`.
import { readFileSync } from "node:fs";
import { once } from "node:events";
import { io } from "socket.io-client";
import { Carillon } from "./carillon.mjs";

const url = process.env.CARILLON_URL ?? "http://127.0.0.1:3001";
const key = process.env.CARILLON_KEY ?? readFileSync("carillon-data/dev-api-key", "utf8");
const examId = `anatomy-${Date.now()}`;
const carillon = new Carillon(url, key);

// The backend provides who may come and what is asked.
await carillon.putUser("lee", { name: "Lee", role: "STUDENT", targetSpecialty: "Cardiology" });
await carillon.putExam(examId, {
  title: "Anatomy",
  durationMinutes: 30,
  participants: ["lee"],
  questions: [
    { id: "bones", kind: "numeric", text: "How many bones has an adult?", correct: 206 },
    { id: "femur", kind: "single_choice", text: "Where is the femur?", options: ["Arm", "Leg"], correct: 1 },
    { id: "why", kind: "essay", text: "Why are bones hollow?", points: 3 },
  ],
});

// The student's frontend. Its token is signed by the school's backend; `dev` signs one for anybody.
const login = await fetch(new URL("/dev/login", url), {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ user: "lee" }),
});
const { token } = await login.json();
const socket = io(url, { auth: { token } });
socket.on("error", (error) => console.error("refused:", error));
await once(socket, "connect");

socket.emit("join-exam", { examId });
const [{ exam, session }] = await once(socket, "exam-joined");
console.log(`${exam.title}: ${exam.questions.length} questions, ${session.time_remaining} s left`);
for (const [questionIndex, answer] of [206, 1, "They are lighter that way."].entries()) {
  const saved = await socket.emitWithAck("exam-answer", { examId, questionIndex, answer });
  console.log(`answer ${questionIndex}: ${saved.ok ? "saved" : saved.code}`);
}

// A teacher gives ten minutes more; the student's screen follows.
socket.once("exam-clock", (clock) => console.log(`${clock.reason}: ${clock.timeRemaining} s left`));
await carillon.control(examId, "extend", { userIds: ["lee"], seconds: 600 });

const { result } = await socket.emitWithAck("exam-complete", { examId });
console.log(`${result.score}/${result.total_questions} right, an essay waits: ${result.pending_review}`);

// Somebody has read the essay.
const award = { userId: "lee", questionId: "why", points: 2.5 };
const [[revised]] = await Promise.all([
  once(socket, "exam-completed", { signal: AbortSignal.timeout(10_000) }).then(async (first) =>
    first[0].result.revision > 1 ? first : once(socket, "exam-completed")),
  carillon.ask("POST", `/v1/exams/${examId}/regrade`, { awards: [award] }, { idempotencyKey: examId }),
]);
console.log(`after the review: ${revised.result.points} of ${revised.result.max_points} points`);
for await (const { userId, points, revision } of carillon.results(examId)) {
  console.log(`${userId}: ${points} points, revision ${revision}`);
}
socket.disconnect();
