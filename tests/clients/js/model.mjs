// The same as anthropic.mjs with a model itself, which the gateway passes requests on to.
import Anthropic from "@anthropic-ai/sdk";
import { error } from "./errors.mjs";

const { BASE, TOKEN, NO_ROLE, SPENT, PIXEL, MODEL, OTHER } = process.env;
const made = (apiKey) => new Anthropic({ baseURL: BASE, apiKey, maxRetries: 0 });
const ask = (content, model = MODEL) => ({ model, max_tokens: 50, messages: [{ role: "user", content }] });
const said = {};

const client = made(TOKEN);
said.plain = await client.messages.create(ask("[[say Well.]]"));
said.streamed = await client.messages.stream(ask("[[say One two.]]")).finalText();
const image = { type: "image", source: { type: "base64", media_type: "image/png", data: PIXEL } };
said.image = (await client.messages.create(ask([image, { type: "text", text: "[[say Seen.]]" }]))).content;
said.counted = await client.messages.countTokens({ model: OTHER, messages: [{ role: "user", content: "hi" }] });
said.model = (await client.models.retrieve(MODEL)).id;
const stream = client.messages.stream(ask("[[delay 200]] [[say " + "word ".repeat(30) + "]]"));
stream.on("text", () => stream.abort());
said.aborted = await error(() => stream.finalMessage());
said.e401 = await error(() => made("none").messages.create(ask("hi")));
said.e403 = await error(() => made(NO_ROLE).messages.create(ask("hi")));
said.ofTheTier = await error(() => client.messages.create(ask("hi", OTHER)));
said.e400 = await error(() => client.messages.create(ask("[[status 400]]")));
for (const status of [429, 503, 529]) said[`api${status}`] = await error(() => client.messages.create(ask(`[[status ${status}]]`)));
said.e429 = await error(() => made(SPENT).messages.create(ask("hi")));
console.log(JSON.stringify(said));
