/**
 * Messages → prompt text, by the chat template of the model file (GGUF key `tokenizer.chat_template`).
 *
 * Templates are Jinja, written for and tested with Hugging Face's `apply_chat_template` in Python. They run in
 * src/chat/template-interpreter.ts, which bounds what they can do and keeps to Python's meaning. A model without a
 * template gets none from us: a guessed format gives quietly worse answers. The caller may choose one.
 */

import { Environment, parse, tokenize } from "@huggingface/jinja";
import { strftime } from "../chat/strftime.ts";
import { BoundedInterpreter } from "../chat/template-interpreter.ts";
import { Extents } from "../chat/template-values.ts";
import { InlayError } from "../errors.ts";

/** JSON, which is all that a template is given. */
export type Json =
  | string
  | number
  | boolean
  | null
  | readonly Json[]
  | { readonly [key: string]: Json | undefined };

/** A message as templates know it. */
export interface TemplateMessage {
  readonly role: string;
  readonly content: string | null;
  /** Calls that the assistant made; `arguments` is an object, or the text as it stands if it is not JSON. */
  readonly tool_calls?: readonly TemplateToolCall[] | undefined;
  /** Anything else that the template may read: `name`, `tool_call_id`, `reasoning_content`. */
  readonly [key: string]: Json | undefined;
}

/** A conversation, oldest message first. */
export type ChatMessages = readonly TemplateMessage[];

export type TemplateToolCall = {
  readonly id?: string | undefined;
  readonly type: "function";
  readonly function: { readonly name: string; readonly arguments: Json };
};

export interface CompileOptions {
  /** Text of the model's special tokens; "" where it has none. */
  readonly bosToken: string;
  readonly eosToken: string;
}

export interface RenderOptions {
  /** Ends the text with the beginning of the assistant's answer. */
  readonly addGenerationPrompt: boolean;
  /** Functions that the model may call, as OpenAI's `tools`. */
  readonly tools?: readonly Json[] | undefined;
  /** Further variables, such as Qwen3's `enable_thinking`. They cannot replace those named above. */
  readonly variables?: Readonly<Record<string, Json>> | undefined;
  /** The time that `strftime_now` shows, in milliseconds since 1970. @default the machine's clock */
  readonly time?: number | undefined;
}

/** Plain ChatML, for models that were trained on it and whose file lacks the template. Chosen by name only. */
const CHATML =
  "{% for message in messages %}" +
  "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}" +
  "{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** Known templates reach 30,000 characters. */
const MAX_SOURCE = 1 << 18;
/** The library's parser takes time quadratic in a run of white space. */
const MAX_WHITE_SPACE = 1024;
/** Python's sandboxed Jinja has the same bound. */
const MAX_RANGE = 100_000;
const MAX_DEPTH = 500;
/** Work and size that a template may use: whatever the messages, per value in them, and per character of them. */
const BASE_WORK = 250_000;
const WORK_PER_VALUE = 1000;
const WORK_PER_CHAR = 1 / 8;
const BASE_CHARS = 1_000_000;
const CHARS_PER_CHAR = 16;

/** Names that a template gets from us. */
const RESERVED: readonly string[] = [
  "messages",
  "tools",
  "documents",
  "add_generation_prompt",
  "bos_token",
  "eos_token",
  "raise_exception",
  "strftime_now",
  "range",
  "namespace",
  "true",
  "false",
  "none",
  "True",
  "False",
  "None",
];

/**
 * The template to use: the caller's choice ("chatml" or Jinja source), else the model's, else none. A model may have
 * several by name; as in Hugging Face's libraries, "tool_use" is for requests with tools and "default" for the others.
 */
export function chooseTemplate(
  chosen: string | null,
  ofModel: Readonly<Record<string, string>>,
  hasTools: boolean,
): string | undefined {
  if (chosen === "chatml") return CHATML;
  return chosen ?? (hasTools ? ofModel.tool_use : undefined) ?? ofModel.default;
}

/** What a chat with a model rejects with when there is no template. */
export function missingTemplate(): InlayError {
  return new InlayError(
    "template-failed",
    "this model file has no chat template, so messages cannot be turned into a prompt; complete raw text instead, " +
      'or load the model with chatTemplate: "chatml" (or Jinja source) if it was trained on that format',
  );
}

/** Thrown by the template itself, through raise_exception. */
class RaisedByTemplate extends Error {}

/** A compiled chat template. */
export class ChatTemplate {
  readonly #program: ReturnType<typeof parse>;
  readonly #tokens: CompileOptions;
  readonly #knowsDeveloper: boolean;
  #takesArgumentObjects: boolean | undefined;

  private constructor(source: string, options: CompileOptions) {
    this.#tokens = options;
    this.#knowsDeveloper = source.includes("developer");
    this.#program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
  }

  /** Compiles Jinja source. Throws `template-failed` if it is not valid, or larger than 262144 characters. */
  static compile(source: string, options: CompileOptions): ChatTemplate {
    try {
      if (source.length > MAX_SOURCE)
        throw new Error(`${source.length} characters long, at most ${MAX_SOURCE} are allowed`);
      if (longestWhiteSpace(source) > MAX_WHITE_SPACE)
        throw new Error(`it has more than ${MAX_WHITE_SPACE} white space characters in a row`);
      return new ChatTemplate(source, options);
    } catch (cause) {
      throw new InlayError(
        "template-failed",
        `the chat template cannot be used: ${messageOf(cause)}`,
        {},
        { cause },
      );
    }
  }

  /**
   * The prompt text of `messages`. The role "developer" becomes "system" unless the template knows it, and tool
   * arguments are passed as an object or as JSON text, whichever the template can write out.
   * Throws `template-failed`, with the template's own message in `details.raised` if it refused the messages.
   */
  render(messages: ChatMessages, options: RenderOptions): string {
    try {
      return this.#run(this.#adapt(messages), options);
    } catch (cause) {
      if (cause instanceof RaisedByTemplate)
        throw new InlayError(
          "template-failed",
          `the model's chat template refuses these messages: ${cause.message}`,
          { raised: cause.message },
          { cause },
        );
      throw new InlayError("template-failed", `the chat template failed: ${messageOf(cause)}`, {}, { cause });
    }
  }

  #run(messages: ChatMessages, options: RenderOptions): string {
    const environment = new Environment();
    const given: Record<string, unknown> = {};
    for (const [name, value] of Object.entries(options.variables ?? {})) {
      if (RESERVED.includes(name)) throw new Error(`the variable ${name} cannot be set from outside`);
      given[name] = value;
    }
    // As in Hugging Face's apply_chat_template, what was not given is none, not undefined.
    given.messages = messages;
    given.tools = options.tools && options.tools.length > 0 ? options.tools : null;
    given.documents = null;
    given.add_generation_prompt = options.addGenerationPrompt;
    given.bos_token = this.#tokens.bosToken;
    given.eos_token = this.#tokens.eosToken;

    const extents = new Extents();
    let nChars = 0;
    let nValues = 0;
    for (const [name, value] of Object.entries(given)) {
      const extent = extents.of(environment.set(name, value));
      nChars += extent.nChars;
      nValues += extent.nValues;
    }
    for (const [name, value] of Object.entries(this.#globals(options.time ?? Date.now())))
      environment.set(name, value);
    const limits = {
      work: Math.ceil(BASE_WORK + WORK_PER_VALUE * nValues + WORK_PER_CHAR * nChars),
      depth: MAX_DEPTH,
      chars: BASE_CHARS + CHARS_PER_CHAR * nChars,
    };
    return new BoundedInterpreter(environment, limits).run(this.#program).toString();
  }

  #globals(time: number): Readonly<Record<string, unknown>> {
    return {
      true: true,
      false: false,
      none: null,
      True: true,
      False: false,
      None: null,
      range: boundedRange,
      raise_exception: (message: unknown) => {
        throw new RaisedByTemplate(String(message ?? ""));
      },
      strftime_now: (format: unknown) => strftime(new Date(time), String(format)),
    };
  }

  #adapt(messages: ChatMessages): TemplateMessage[] {
    return messages.map((message) => {
      // A property that is there but undefined would be there for the template: `'tool_calls' in message`.
      const given = Object.entries(message).filter(([, value]) => value !== undefined);
      const adapted: Record<string, Json | undefined> = Object.fromEntries(given);
      if (message.role === "developer" && !this.#knowsDeveloper) adapted.role = "system";
      if (message.tool_calls && !this.#writesArgumentObjects())
        adapted.tool_calls = message.tool_calls.map((call) => ({
          ...call,
          function: { ...call.function, arguments: jsonText(call.function.arguments) },
        }));
      return adapted as unknown as TemplateMessage;
    });
  }

  /**
   * Whether tool arguments are given as an object, which is Hugging Face's convention. Some templates paste them as
   * text, and nothing declares it, so it is found by trying, once: text only if objects fail and text does not.
   */
  #writesArgumentObjects(): boolean {
    const shows = (args: Json) => this.#probe(args).includes("needle");
    this.#takesArgumentObjects ??= shows({ needle: "found" }) || !shows('{"needle": "found"}');
    return this.#takesArgumentObjects;
  }

  /** What the template makes of one tool call, "" if it fails. */
  #probe(args: Json): string {
    const call: TemplateToolCall = {
      id: "call00000",
      type: "function",
      function: { name: "probe", arguments: args },
    };
    const messages: ChatMessages = [
      { role: "user", content: "probe" },
      { role: "assistant", content: "", tool_calls: [call] },
    ];
    try {
      return this.#run(messages, { addGenerationPrompt: false });
    } catch {
      return "";
    }
  }
}

function jsonText(value: Json): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Python's range, as a list. */
function boundedRange(...args: unknown[]): number[] {
  const numbers = args.map((arg) => {
    if (typeof arg !== "number" || !Number.isSafeInteger(arg)) throw new Error("range() takes integers");
    return arg;
  });
  if (numbers.length < 1 || numbers.length > 3)
    throw new Error(`range() takes 1 to 3 integers, got ${args.length}`);
  const [start, stop, step] =
    numbers.length === 1 ? [0, numbers[0]!, 1] : [numbers[0]!, numbers[1]!, numbers[2] ?? 1];
  if (step === 0) throw new Error("range() step must not be 0");
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (length > MAX_RANGE) throw new Error(`range() of ${length} numbers, at most ${MAX_RANGE} are allowed`);
  return Array.from({ length }, (_, i) => start + i * step);
}

function longestWhiteSpace(text: string): number {
  let longest = 0;
  for (const [run] of text.matchAll(/\s+/g)) longest = Math.max(longest, run.length);
  return longest;
}

function messageOf(cause: unknown): string {
  return cause instanceof Error && cause.message !== "" ? cause.message : "break or continue outside a loop";
}
