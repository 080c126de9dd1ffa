// What OpenAI's SDK makes of the gateway's answers: one JSON object on stdout.
import OpenAI from "openai";
import { error } from "./errors.mjs";

const { BASE, TOKEN, NO_ROLE, SPENT, PIXEL } = process.env;
const made = (apiKey) => new OpenAI({ baseURL: `${BASE}/v1`, apiKey, maxRetries: 0 });
const ask = (content, more = {}) => ({ model: "claude-code", messages: [{ role: "user", content }], ...more });
const said = {};

const client = made(TOKEN);
said.plain = await client.chat.completions.create(ask("[[say Well.]]"));
said.models = [];
for await (const model of client.models.list()) said.models.push(model.id);
const chunks = await client.chat.completions.create(
  ask('[[tool Write {"file_path": "a.txt", "content": "b"}]] [[say Done.]]', { stream: true, stream_options: { include_usage: true } }));
said.streamed = "";
for await (const chunk of chunks) {
  said.left = chunk.artifacts ?? said.left;
  said.streamed += chunk.choices[0]?.delta.content ?? "";
  said.usage = chunk.usage ?? null;
}
const image = { type: "image_url", image_url: { url: `data:image/png;base64,${PIXEL}` } };
said.image = (await client.chat.completions.create(ask([image, { type: "text", text: "[[say Seen.]]" }]))).choices[0].message.content;
const schema = { type: "object", properties: { good: { type: "boolean" } }, required: ["good"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "verdict", schema, strict: true } };
said.parsed = (await client.chat.completions.parse(
  ask('[[tool StructuredOutput {"good": true}]]', { response_format: format }))).choices[0].message.content;
const control = new AbortController();
said.aborted = await error(async () => {
  const { data, response } = await client.chat.completions
    .create(ask("[[delay 200]] [[say " + "word ".repeat(200) + "]]", { stream: true }), { signal: control.signal }).withResponse();
  said.run = response.headers.get("x-claude-run");
  for await (const _ of data) control.abort();
});
said.e401 = await error(() => made("none").chat.completions.create(ask("hi")));
said.e403 = await error(() => made(NO_ROLE).chat.completions.create(ask("hi")));
said.e404 = await error(() => client.models.retrieve("gpt"));
// The tier has ten in a minute; these the invoker refuses.
for (let i = 0; i < 10; i++)
  await fetch(`${BASE}/v1/messages`, { method: "POST", headers: { "x-api-key": SPENT, "content-type": "application/json" }, body: "{}" });
said.e429 = await error(() => made(SPENT).chat.completions.create(ask("hi")));
said.e503 = await error(() => client.chat.completions.create(ask("[[status 429]]")));
said.e400 = await error(() => client.chat.completions.create(ask("hi", { temperature: 0.2 })));
console.log(JSON.stringify(said));
