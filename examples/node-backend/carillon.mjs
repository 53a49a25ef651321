// The server API in a few lines. What can be asked is in /v1/openapi.json.

/** A refusal: `code` is the stable word, `detail` says what is wrong. */
export class ApiError extends Error {
  constructor({ code, detail, title, retryAfterMs }) {
    super(`${code}: ${detail ?? title}`);
    Object.assign(this, { code, retryAfterMs });
  }
}

export class Carillon {
  constructor(url, key) {
    Object.assign(this, { url, key });
  }

  /** `idempotencyKey` makes it safe to repeat a write whose answer was lost. */
  async ask(method, path, body, { idempotencyKey } = {}) {
    const response = await fetch(new URL(path, this.url), {
      method,
      headers: {
        authorization: `Bearer ${this.key}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(idempotencyKey ? { "idempotency-key": idempotencyKey } : {}),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const reply = await response.json();
    if (!response.ok) throw new ApiError(reply);
    return reply;
  }

  putUser(id, user) {
    return this.ask("PUT", `/v1/users/${encodeURIComponent(id)}`, user);
  }

  putExam(id, exam) {
    return this.ask("PUT", `/v1/exams/${encodeURIComponent(id)}`, exam);
  }

  control(examId, action, more = {}) {
    return this.ask("POST", `/v1/exams/${encodeURIComponent(examId)}/control`, { action, ...more });
  }

  /** Every result, page by page. */
  async *results(examId) {
    let cursor = "";
    do {
      const page = await this.ask("GET", `/v1/exams/${encodeURIComponent(examId)}/results?limit=100${cursor}`);
      yield* page.items;
      cursor = page.next && `&cursor=${page.next}`;
    } while (cursor);
  }
}
