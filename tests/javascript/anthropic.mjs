// As openai.mjs, with Anthropic's client.
import Anthropic from "@anthropic-ai/sdk";
import { given, run } from "./case.mjs";

const client = new Anthropic({ baseURL: given.url, authToken: given.key, apiKey: null, maxRetries: 0 });
const asked = {
  model: given.model,
  max_tokens: 9,
  messages: [{ role: "user", content: given.question }],
  ...given.fields,
};

await run({
  message: () => client.messages.create(asked),

  async with_an_api_key() {
    const other = new Anthropic({ baseURL: given.url, apiKey: given.key, maxRetries: 0 });
    return other.messages.create(asked);
  },

  async stream() {
    const found = [];
    for await (const event of await client.messages.create({ ...asked, stream: true })) found.push(event);
    return found;
  },

  async helper_stream() {
    const pieces = [];
    const stream = client.messages.stream(asked).on("text", (text) => pieces.push(text));
    return { pieces, final: await stream.finalMessage() };
  },

  async abort() {
    const stream = client.messages.stream(asked);
    stream.on("text", () => stream.abort());
    try {
      await stream.done();
    } catch (error) {
      return { kind: error.constructor.name };
    }
    return null;
  },

  async tools() {
    return client.messages.stream({ ...asked, tools: given.tools }).finalMessage();
  },

  count: () => {
    const { max_tokens, ...counted } = asked;
    return client.messages.countTokens(counted);
  },

  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return ids;
  },

  async errors() {
    const found = {};
    const requests = {
      no_model: { ...asked, model: "nope" },
      bad_field: { ...asked, thinking: { type: "enabled", budget_tokens: 1024 } },
    };
    for (const [name, request] of Object.entries(requests)) {
      try {
        await client.messages.create(request);
      } catch (error) {
        found[name] = { kind: error.constructor.name, type: error.error?.error?.type, message: error.message };
      }
    }
    return found;
  },
});
