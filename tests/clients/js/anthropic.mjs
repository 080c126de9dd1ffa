// What Anthropic's SDK makes of the gateway's answers: one JSON object on stdout.
import Anthropic from "@anthropic-ai/sdk";
import { error } from "./errors.mjs";

const { BASE, TOKEN, NO_ROLE, SPENT, PIXEL } = process.env;
const made = (apiKey, more = {}) => new Anthropic({ baseURL: BASE, apiKey, maxRetries: 0, ...more });
const ask = (content, more = {}) => ({ model: "claude-code", max_tokens: 10, messages: [{ role: "user", content }], ...more });
const said = {};

const client = made(TOKEN);
said.plain = await client.messages.create(ask("[[say Well.]]"));
// As a bearer token, and by the header of older versions.
said.bearer = (await made(null, { authToken: TOKEN }).models.retrieve("claude-code")).id;
said.header = (await made("none", { defaultHeaders: { authorization: null, "x-api-key": TOKEN } }).models.retrieve("claude-code")).id;
said.models = [];
for await (const model of client.models.list({ limit: 2 })) said.models.push(model.id);
said.streamed = await client.messages.stream(ask('[[tool Write {"file_path": "a.txt", "content": "b"}]] [[say Done.]]')).finalMessage();
const write = '[[tool Write {"file_path": "a.txt", "content": "b"}]] [[tool mcp__memory__export {}]]';
const more = { mcp: ["memory"], skills: [] };
said.left = await client.messages.create(ask(write, more));
for await (const event of await client.messages.create(ask(write, { stream: true, ...more })))
  if (event.type === "message_delta") said.leftAtTheEnd = event.artifacts;
const image = { type: "image", source: { type: "base64", media_type: "image/png", data: PIXEL } };
said.image = (await client.messages.create(ask([image, { type: "text", text: "[[say Seen.]]" }]))).content;
said.counted = await client.messages.countTokens({ model: "claude-code", messages: [{ role: "user", content: "hi" }] });
const stream = client.messages.stream(ask("[[delay 200]] [[say " + "word ".repeat(200) + "]]"));
let run;
stream.on("text", () => {
  run = stream.response.headers.get("x-claude-run");
  stream.abort();
});
said.aborted = await error(() => stream.finalMessage());
said.run = run;
said.e401 = await error(() => made("none").messages.create(ask("hi")));
said.e403 = await error(() => made(NO_ROLE).messages.create(ask("hi")));
said.e404 = await error(() => client.models.retrieve("gpt"));
// The tier has ten in a minute; these the invoker refuses.
for (let i = 0; i < 10; i++)
  await fetch(`${BASE}/v1/messages`, { method: "POST", headers: { "x-api-key": SPENT, "content-type": "application/json" }, body: "{}" });
said.e429 = await error(() => made(SPENT).messages.create(ask("hi")));
said.e503 = await error(() => client.messages.create(ask("[[status 429]]")));
said.e400 = await error(() => client.messages.create(ask("hi", { stop_sequences: ["."] })));
console.log(JSON.stringify(said));
