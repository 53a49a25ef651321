// Who is here: by user, not by socket, and told only to those who share a room with them.
import assert from "node:assert/strict";
import { describe } from "node:test";
import { pause, silent, story } from "./harness.mjs";

const STATUS = "user-status-change";
/** A socket without a successor leaves its user online for this long. */
const GRACE = 5000;

const status = (userId, status) => ({ userId, userName: `${userId} Name`, status });
/** Who joins before they have been counted in is told to be online twice. */
const leaving = (event) => event.status === "offline";
const about = (userId) => (event) => event.userId === userId;

async function acquaint(world, room, ...ids) {
  const people = await world.people(...ids);
  for (const person of people) await person.joins(room);
  for (const person of people) {
    await person.settled();
    person.forget();
  }
  return people;
}

// Most of these wait for the grace, so they wait together.
describe("presence", { concurrency: 5 }, () => {
  story("who comes online is told to those who share a room, and to nobody else", {}, async (world) => {
    const [ana, ben] = await acquaint(world, "algebra", "ana", "ben");
    const [cleo] = await acquaint(world, "physics", "cleo");
    ben.leaves();
    assert.deepEqual(await ana.hears(STATUS, leaving, GRACE + 2000), status("ben", "offline"));
    const back = await world.person("ben");
    assert.deepEqual(await ana.hears(STATUS), status("ben", "online"));
    assert.deepEqual(await back.hears(STATUS), status("ben", "online"));
    await silent(STATUS, ana, cleo);
  });

  story("a user goes offline five seconds after the last socket, and not before", {}, async (world) => {
    const [ana, ben] = await acquaint(world, "algebra", "ana", "ben");
    const since = Date.now();
    ben.leaves();
    assert.deepEqual(await ana.hears(STATUS, leaving, GRACE + 2000), status("ben", "offline"));
    const took = Date.now() - since;
    assert.ok(took >= GRACE - 50 && took <= GRACE + 1000, `${took} ms`);
    assert.deepEqual(ana.unheard(STATUS).filter(leaving), []);
  });

  story("a connection that breaks is a leaving like any other", {}, async (world) => {
    const [ana, ben] = await acquaint(world, "algebra", "ana", "ben");
    ben.socket.io.engine.close();
    assert.deepEqual(await ana.hears(STATUS, leaving, GRACE + 2000), status("ben", "offline"));
  });

  story("a reconnect within the grace is not told", {}, async (world) => {
    const [ana, ben] = await acquaint(world, "algebra", "ana", "ben");
    ben.leaves();
    const back = await world.person("ben");
    await back.joins("algebra");
    // The silence has the length of the grace: only after it would the leaving be told.
    await pause(GRACE + 1500);
    await silent(STATUS, ana);
  });

  story("two sockets of a page are one user", {}, async (world) => {
    const [ana, one, two] = await acquaint(world, "algebra", "ana", "ben", "ben");
    one.leaves();
    await pause(GRACE + 1500);
    await silent(STATUS, ana, two);
    const three = await world.person("ben");
    await silent(STATUS, ana, two, three);
  });

  story("a user's own sockets learn that they are online, once", {}, async (world) => {
    const first = await world.person("ana");
    assert.deepEqual(await first.hears(STATUS), status("ana", "online"));
    const second = await world.person("ana");
    await silent(STATUS, first, second);
  });

  story("a newcomer learns who is there, and those who are there learn of the newcomer", {}, async (world) => {
    const [ana] = await acquaint(world, "algebra", "ana", "ben", "ben");
    await acquaint(world, "physics", "dora");
    const cleo = await world.person("cleo");
    await cleo.hears(STATUS, about("cleo"));
    await cleo.joins("algebra");
    const there = [await cleo.hears(STATUS), await cleo.hears(STATUS)];
    assert.deepEqual(
      there.sort((a, b) => a.userId.localeCompare(b.userId)),
      [status("ana", "online"), status("ben", "online")],
    );
    await silent(STATUS, cleo);
    assert.deepEqual(await ana.hears(STATUS), status("cleo", "online"));
    await silent(STATUS, ana);
  });

  story("the snapshot comes after the room", {}, async (world) => {
    await acquaint(world, "algebra", "ana");
    const cleo = await world.person("cleo");
    await cleo.settled();
    const order = [];
    cleo.socket.onAny((name) => order.push(name));
    await cleo.joins("algebra");
    await cleo.hears(STATUS, about("ana"));
    assert.ok(order.indexOf("room-joined") < order.indexOf(STATUS), `${order}`);
  });

  story("somebody offline is not in the snapshot", {}, async (world) => {
    const [ana, ben] = await acquaint(world, "algebra", "ana", "ben");
    ben.leaves();
    await ana.hears(STATUS, leaving, GRACE + 2000);
    const cleo = await world.person("cleo");
    await cleo.hears(STATUS, about("cleo"));
    await cleo.joins("algebra");
    assert.deepEqual(await cleo.hears(STATUS), status("ana", "online"));
    await silent(STATUS, cleo);
  });

  story("presence crosses namespaces", {}, async (world) => {
    const [ana] = await acquaint(world, "algebra", "ana");
    const ben = await world.person("ben", { path: "/chat" });
    await ben.joins("algebra");
    assert.deepEqual(await ana.hears(STATUS), status("ben", "online"));
    assert.deepEqual(await ben.hears(STATUS, about("ana")), status("ana", "online"));
    ben.leaves();
    assert.deepEqual(await ana.hears(STATUS, leaving, GRACE + 2000), status("ben", "offline"));
  });
});
