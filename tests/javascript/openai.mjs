// One case a run: `node openai.mjs NAME`, what it is given as JSON on stdin, what it found as JSON on stdout.
// The requests are made as the client's own documentation makes them; the tests judge what comes out.
import OpenAI from "openai";
import { given, run } from "./case.mjs";

const HELLO = [{ role: "user", content: given.question }];
const client = new OpenAI({
  baseURL: `${given.url}/v1`,
  apiKey: given.key,
  maxRetries: given.retries ?? 0,
});
const chat = { model: given.model, messages: HELLO, ...given.fields };

async function collect(stream) {
  const found = [];
  for await (const each of stream) found.push(each);
  return found;
}

async function errorOf(request) {
  try {
    await request;
  } catch (error) {
    const { status, code, param, message } = error;
    const kind = error.constructor.name;
    return { kind, status, code, param, message, isApiError: error instanceof OpenAI.APIError };
  }
  return null;
}

await run({
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return { ids, one: await client.models.retrieve(ids[0]) };
  },

  chat: () => client.chat.completions.create(chat),

  async chat_stream() {
    const asked = { ...chat, stream: true, stream_options: { include_usage: true } };
    return collect(await client.chat.completions.create(asked));
  },

  async helper_stream() {
    const events = {};
    const stream = client.chat.completions.stream(chat);
    for (const name of ["content", "chunk", "content.done", "end"]) {
      stream.on(name, () => (events[name] = (events[name] ?? 0) + 1));
    }
    return { text: await stream.finalContent(), events, completion: await stream.finalChatCompletion() };
  },

  async abort() {
    const controller = new AbortController();
    const asked = { ...chat, stream: true };
    const stream = await client.chat.completions.create(asked, { signal: controller.signal });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 2) controller.abort();
    return { chunks };
  },

  async stream_abort() {
    const stream = client.chat.completions.stream(chat);
    let chunks = 0;
    stream.on("chunk", () => {
      if (++chunks === 2) stream.abort();
    });
    const error = await errorOf(stream.done());
    return { chunks, aborted: stream.aborted, kind: error?.kind };
  },

  async leaving_the_loop() {
    const stream = await client.chat.completions.create({ ...chat, stream: true });
    for await (const _ of stream) break;
    return {};
  },

  async broken_stream() {
    return errorOf(collect(await client.chat.completions.create({ ...chat, stream: true })));
  },

  completions: () =>
    client.completions.create({ model: given.model, prompt: given.question, ...given.fields }),

  async completions_stream() {
    const asked = { model: given.model, prompt: given.question, stream: true, ...given.fields };
    return collect(await client.completions.create(asked));
  },

  async embeddings() {
    const asked = { model: given.embedder, input: given.texts };
    const byDefault = await client.embeddings.create(asked);
    const floats = await client.embeddings.create({ ...asked, encoding_format: "float" });
    return { byDefault, floats };
  },

  async tools_stream() {
    const stream = client.chat.completions.stream({ ...chat, tools: given.tools });
    const pieces = [];
    const done = [];
    stream.on("tool_calls.function.arguments.delta", (event) => pieces.push(event.arguments_delta));
    stream.on("tool_calls.function.arguments.done", (event) => done.push(event));
    return { completion: await stream.finalChatCompletion(), pieces, done };
  },

  async tools_run() {
    const asked = [];
    const named = given.tools[0].function;
    const look = { ...named, parse: JSON.parse, function: (args) => (asked.push(args), "found") };
    const runner = client.chat.completions.runTools(
      { ...chat, tools: [{ type: "function", function: look }] },
      { maxChatCompletions: 2 },
    );
    await runner.done();
    return { asked, messages: runner.messages };
  },

  response: () =>
    client.responses.create({ model: given.model, input: given.question, ...given.fields }),

  async response_stream() {
    const asked = { model: given.model, input: given.question, stream: true, ...given.fields };
    return collect(await client.responses.create(asked));
  },

  async response_helper() {
    const asked = { model: given.model, input: given.question, ...given.fields };
    const stream = client.responses.stream(asked);
    let pieces = 0;
    stream.on("response.output_text.delta", () => (pieces += 1));
    return { final: await stream.finalResponse(), pieces };
  },

  async schema() {
    const json_schema = { name: "answer", strict: true, schema: given.schema };
    const asked = { ...chat, response_format: { type: "json_schema", json_schema } };
    return (await client.chat.completions.parse(asked)).choices[0];
  },

  async errors() {
    const stranger = new OpenAI({ baseURL: `${given.url}/v1`, apiKey: "sk-wrong", maxRetries: 0 });
    return {
      wrong_key: await errorOf(stranger.models.list()),
      no_model: await errorOf(client.models.retrieve("nope")),
      chat_no_model: await errorOf(client.chat.completions.create({ ...chat, model: "nope" })),
      bad_field: await errorOf(client.chat.completions.create({ ...chat, store: true })),
      bad_value: await errorOf(client.chat.completions.create({ ...chat, temperature: 9 })),
    };
  },

  async error() {
    return errorOf(client.chat.completions.create(chat));
  },

  async headers() {
    const { data, response } = await client.chat.completions.create(chat).withResponse();
    return { headers: Object.fromEntries(response.headers), id: data.id, request: data._request_id };
  },

  async at_the_same_time() {
    const asked = Array.from({ length: 8 }, () => client.chat.completions.create(chat));
    return (await Promise.all(asked)).map((answer) => answer.choices[0].message.content);
  },
});
