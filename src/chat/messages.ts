/** The messages of a request → the messages that a chat template knows, every field checked. */

import {
  checkArray,
  checkKnownNames,
  checkObject,
  checkOneOf,
  checkString,
  invalidOption,
  notSupported,
} from "../option-checks.ts";
import type { Json, TemplateMessage, TemplateToolCall } from "../tokenizer/chat-template.ts";

const ROLES = ["system", "developer", "user", "assistant", "tool"] as const;
type Role = (typeof ROLES)[number];

/** Fields by role, beside `role`, `content` and `name`. What OpenAI's answers have may be passed back. */
const FIELDS: Readonly<Record<Role, readonly string[]>> = {
  system: [],
  developer: [],
  user: [],
  assistant: ["tool_calls", "reasoning_content", "refusal", "annotations", "audio", "function_call"],
  tool: ["tool_call_id"],
};

const TEXT_ONLY = "this version takes text only";

/** Throws `invalid-option` naming the message and field. */
export function resolveMessages(value: unknown): TemplateMessage[] {
  const messages = checkArray("messages", value);
  if (messages.length === 0) throw invalidOption("messages", value, "an array of at least one message");
  return messages.map((message, i) => resolveMessage(`messages[${i}]`, message));
}

function resolveMessage(path: string, value: unknown): TemplateMessage {
  const message = checkObject(path, value);
  if (message.role === "function")
    throw notSupported(`${path}.role`, message.role, 'send the result as a message with the role "tool"');
  const role = checkOneOf(`${path}.role`, message.role, ROLES);
  checkKnownNames(`${path}.`, message, ["role", "content", "name", ...FIELDS[role]]);
  for (const name of ["audio", "function_call"] as const)
    if (isGiven(message[name])) throw notSupported(`${path}.${name}`, message[name], TEXT_ONLY);

  const toolCalls = isGiven(message.tool_calls)
    ? resolveToolCalls(`${path}.tool_calls`, message.tool_calls)
    : [];
  const resolved: Record<string, Json> = { role };
  // A template that adds texts would fail on none; an empty string reads the same to the others.
  resolved.content =
    toolCalls.length > 0 && !isGiven(message.content)
      ? ""
      : resolveContent(`${path}.content`, message.content);
  if (toolCalls.length > 0) resolved.tool_calls = toolCalls;
  for (const name of ["name", "tool_call_id", "reasoning_content"] as const)
    if (isGiven(message[name])) resolved[name] = checkString(`${path}.${name}`, message[name]);
  return resolved as unknown as TemplateMessage;
}

function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null;
}

/** Text as it is; parts joined by a line break, as llama.cpp's server and vLLM do for templates that take text. */
function resolveContent(path: string, value: unknown): string {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) throw invalidOption(path, value, "a string or an array of text parts");
  const texts = value.map((entry: unknown, i) => {
    const part = checkObject(`${path}[${i}]`, entry);
    if (part.type !== "text") throw notSupported(`${path}[${i}].type`, part.type, TEXT_ONLY);
    checkKnownNames(`${path}[${i}].`, part, ["type", "text"]);
    return checkString(`${path}[${i}].text`, part.text);
  });
  return texts.join("\n");
}

function resolveToolCalls(path: string, value: unknown): TemplateToolCall[] {
  return checkArray(path, value).map((entry, i) => {
    const call = checkObject(`${path}[${i}]`, entry);
    checkKnownNames(`${path}[${i}].`, call, ["id", "type", "function", "index"]);
    checkOneOf(`${path}[${i}].type`, call.type, ["function"]);
    const called = checkObject(`${path}[${i}].function`, call.function);
    checkKnownNames(`${path}[${i}].function.`, called, ["name", "arguments"]);
    const toolCall: TemplateToolCall = {
      type: "function",
      function: {
        name: checkString(`${path}[${i}].function.name`, called.name),
        arguments: parseArguments(checkString(`${path}[${i}].function.arguments`, called.arguments)),
      },
    };
    return isGiven(call.id) ? { id: checkString(`${path}[${i}].id`, call.id), ...toolCall } : toolCall;
  });
}

/** The object that the JSON text stands for; the text itself if the model wrote something else. */
function parseArguments(text: string): Json {
  try {
    const value = JSON.parse(text) as Json;
    return typeof value === "object" && value !== null ? value : text;
  } catch {
    return text;
  }
}
