/** What chat templates may do, what they may not, and where they follow Python. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import {
  ChatTemplate,
  chooseTemplate,
  type Json,
  missingTemplate,
  type RenderOptions,
  type TemplateMessage,
} from "../../src/tokenizer/chat-template.ts";

const TIME = new Date(2024, 0, 5, 15, 4, 9).getTime();
const HELLO: TemplateMessage[] = [{ role: "user", content: "hello" }];

function compile(source: string): ChatTemplate {
  return ChatTemplate.compile(source, {
    bosToken: "<s>",
    eosToken: "</s>",
  });
}

function render(source: string, variables: Record<string, Json> = {}, messages = HELLO): string {
  return compile(source).render(messages, { addGenerationPrompt: true, variables, time: TIME });
}

function failure(attempt: () => unknown): InlayError {
  try {
    attempt();
  } catch (error) {
    assert.ok(error instanceof InlayError);
    assert.equal(error.code, "template-failed");
    return error;
  }
  return assert.fail("nothing was thrown");
}

describe("as in Python's Jinja", () => {
  const data = { one: 1, list: [1, 2], dict: { a: 1, b: [2] }, none: null, text: "a,b,c" };
  const cases: [source: string, expected: string][] = [
    ["{{ '  x\\n'.strip() }}|{{ ' x '.lstrip() }}|{{ ' x '.rstrip() }}", "x|x | x"],
    ["{{ '\\ufeffx\\x85\\x1c '.strip() }}", "\ufeffx"],
    ["{{ '\\n\\nx\\n'.lstrip('\\n') }}|{{ 'xyzx'.strip('xz') }}|{{ 'x--'.rstrip('-') }}", "x\n|y|x"],
    ["{{ '🙂a🙂'.strip('🙂') }}|{{ 'aa'.strip('a') }}|{{ 'a'.strip(none) }}", "a||a"],
    ["{{ ' x '|trim }}|{{ 'xyx'|trim('x') }}", "x|y"],
    ["{{ 'hELLO wORLD'.capitalize() }}|{{ 'hELLO wORLD'|title }}", "Hello world|Hello World"],
    ["{{ 1 == '1' }}{{ '' == 0 }}{{ v.none == nothing }}{{ [] == '' }}", "falsefalsefalsefalse"],
    [
      "{{ 1 == 1.0 }}{{ true == 1 }}{{ v.list == [1, 2] }}{{ v.dict == {'b': [2], 'a': 1} }}",
      "truetruetruetrue",
    ],
    ["{{ v.list != [1, 3] }}{{ v.dict != {'a': 1} }}{{ {'a': 1} == {'b': 1} }}", "truetruefalse"],
    ["{{ nothing == nothing }}{{ v.none == none }}{{ 'a' == 'a' }}", "truetruetrue"],
    ["{% for c in 'a🙂' %}[{{ c }}]{% endfor %}", "[a][🙂]"],
    ["{% for k in v.dict %}{{ k }}{{ loop.index }}{% endfor %}", "a1b2"],
    ["{% for x in nothing %}x{% else %}none{% endfor %}{% for x in nothing if x %}x{% endfor %}", "none"],
    ["{% for x in v.list if x > 1 %}{{ x }}{{ loop.length }}{% endfor %}", "21"],
    ["{{ nothing|d('x') }}{{ v.list|count }}{{ v.list|d }}", "x2[1, 2]"],
    [
      "{{ v.list|join('-') }}|{{ 'abc'|join(',') }}|{{ v.list|join }}|{{ v.list|join(d='+') }}",
      "1-2|a,b,c|12|1+2",
    ],
    ["{{ 'x' ~ v.list }}|{{ v.dict ~ '' }}|{{ 1 ~ 2 }}", 'x[1, 2]|{"a": 1, "b": [2]}|12'],
    ["{{ v.dict|tojson }}|{{ v.list|tojson(indent=1) }}", '{"a": 1, "b": [2]}|[\n 1,\n 2\n]'],
    ["{{ v.text|replace(',', ';') }}|{{ v.text.replace(',', '', 1) }}", "a;b;c|ab,c"],
    ["{{ v.text.split(',')[-1] }}|{{ 'a\\nb'|indent(2) }}|{{ v.list|length }}", "c|a\n  b|2"],
    ["{% filter upper %}a{{ v.one }}{% endfilter %}|{% filter trim %} x {% endfilter %}", "A1|x"],
    [
      "{{ range(3)|join }}|{{ range(1, 4)|join }}|{{ range(5, 0, -2)|join }}|{{ range(0)|join }}",
      "012|123|531|",
    ],
    [
      "{% set ns = namespace(n=0) %}{% for x in v.list %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
      "3",
    ],
    ["{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(3, b=4) }}", "1234"],
    ["{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"],
    ["{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"],
    ["{{ v.list is iterable }}{{ v.dict is mapping }}{{ v.text is string }}", "truetruetrue"],
    ["{{ 'a' in v.dict }}{{ 'z' not in v.text }}{{ 3 in v.list }}", "truetruefalse"],
    ["{{ v.dict.nothing }}{{ nothing }}", ""],
    ["{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}", "<s></s>true"],
    ["{{ tools is none }}{{ tools is defined }}{{ documents is none }}", "truetruetrue"],
    ["  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"],
    ["{% generation %}x{% endgeneration %}", "x"],
  ];
  for (const [source, expected] of cases)
    test(source, () => assert.equal(render(source, { v: data }), expected));
});

describe("dates come from the injected clock, in the C locale", () => {
  const cases: [format: string, expected: string][] = [
    ["%d %b %Y", "05 Jan 2024"],
    ["%A, %B %-d", "Friday, January 5"],
    ["%a %y-%m-%d %H:%M:%S", "Fri 24-01-05 15:04:09"],
    ["%I %p %j %w %%", "03 PM 005 5 %"],
  ];
  for (const [format, expected] of cases)
    test(format, () => assert.equal(render(`{{ strftime_now('${format}') }}`), expected));
  test("an unknown directive is an error", () =>
    assert.match(failure(() => render("{{ strftime_now('%Q') }}")).message, /unknown directive "%Q"/));
});

describe("a template cannot run away", () => {
  const grow = (times: number, start: string, step: string) =>
    `{% set ns = namespace(s=${start}) %}{% for i in range(${times}) %}{% set ns.s = ${step} %}{% endfor %}`;
  const tooLarge = /makes a value of more than \d+ characters/;
  const tooLong = /did more than \d+ steps/;
  const cases: [name: string, source: string, message: RegExp][] = [
    [
      "a huge range",
      "{% for i in range(10**9) %}{% endfor %}",
      /range\(\) of 1000000000 numbers, at most 100000/,
    ],
    ["a range without end", "{% for i in range(1, 2, 0) %}{% endfor %}", /step must not be 0/],
    ["nested loops", "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", tooLong],
    ["a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", /more than 500 levels/],
    [
      "a macro that calls itself twice",
      "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
      tooLong,
    ],
    ["a string that doubles", `${grow(99, "'x'", "ns.s ~ ns.s")}{{ ns.s }}`, tooLarge],
    ["a list that doubles", `${grow(99, "[1]", "ns.s + ns.s")}{{ ns.s }}`, tooLarge],
    ["a tree that doubles", `${grow(99, "[1]", "[ns.s, ns.s]")}{{ ns.s }}`, tooLarge],
    ["a dict that doubles", `${grow(99, "{}", "{'a': ns.s, 'b': ns.s}")}{{ ns.s }}`, tooLarge],
    ["replace", `${grow(15, "'x'", "ns.s ~ ns.s")}{{ ns.s|replace('x', ns.s) }}`, tooLarge],
    ["the method replace", `${grow(15, "'x'", "ns.s ~ ns.s")}{{ ns.s.replace('', ns.s) }}`, tooLarge],
    ["join", `${grow(15, "'x'", "ns.s ~ ns.s")}{{ ns.s|join(ns.s) }}`, tooLarge],
    ["indent", "{{ 'a'|indent(10**8, true) }}", tooLarge],
    ["indent as a block", "{% filter indent(width=10**8) %}a{% endfilter %}", tooLarge],
    ["tojson with indentation", `${grow(300, "[1]", "[ns.s]")}{{ ns.s|tojson(indent=10**5) }}`, tooLarge],
    [
      "tojson with separators",
      `${grow(18, "'x'", "ns.s ~ ns.s")}{{ range(99)|tojson(separators=(ns.s, ns.s)) }}`,
      tooLarge,
    ],
    [
      "work on one large string",
      `${grow(19, "'x'", "ns.s ~ ns.s")}${"{% for i in range(99) %}".repeat(2)}{% set q = ns.s|upper %}${"{% endfor %}".repeat(2)}`,
      tooLong,
    ],
    ["the output", "{% for i in range(9999) %}{{ '0123456789' * 1 }}{% endfor %}", /Unknown operator/],
    ["long output", `{% for i in range(9999) %}${"0123456789".repeat(20)}{% endfor %}`, tooLarge],
    [
      "a namespace inside itself",
      "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
      /namespace cannot be put/,
    ],
    ["a namespace in a list", "{% set n = namespace() %}{{ [n] }}", /namespace cannot be put/],
    ["break outside a loop", "{% break %}", /break or continue outside a loop/],
  ];
  for (const [name, source, message] of cases)
    test(name, () => assert.match(failure(() => render(source)).message, message));

  test("but long conversations and long documents pass", () => {
    const source =
      "{% for m in messages %}{% if m.role == 'user' or (loop.last and not m.tool_calls) %}" +
      "{% set c = m.content|trim %}{{ '<|' + m.role + '|>' + c.replace('\\n', ' ') + '<|end|>' }}" +
      "{% elif messages[loop.index0 - 1].role == 'user' %}{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}";
    const many: TemplateMessage[] = Array.from({ length: 3000 }, (_, i) => ({
      role: i % 2 ? "assistant" : "user",
      content: `message ${i}`,
    }));
    assert.match(render(source, {}, many), /message 2999<\|end\|>$/);
    const document = "All work and no play.\n".repeat(100_000);
    assert.equal(
      render(source, {}, [{ role: "user", content: document }]).length,
      document.length - 1 + "<|user|><|end|>".length,
    );
  });
});

describe("a template cannot reach JavaScript", () => {
  const sources = [
    "{{ messages.constructor }}{{ messages.__proto__ }}{{ messages['constructor'] }}",
    "{{ ''.constructor }}{{ (1).constructor }}{{ range.constructor }}{{ {}.__proto__ }}{{ {}['toString'] }}",
    "{{ self }}{{ this }}{{ globalThis }}{{ process }}{{ window }}{{ constructor }}{{ __proto__ }}",
    "{{ ''.__class__ }}{{ namespace().constructor }}{{ loop }}",
  ];
  for (const source of sources) test(source, () => assert.equal(render(source), ""));
  for (const source of [
    "{{ raise_exception.constructor('return 1')() }}",
    "{{ 'a'.constructor('b') }}",
    "{{ 'a'|constructor }}",
    "{{ 'a'|__proto__ }}",
    "{{ 'a' is constructor }}",
    "{{ {}.hasOwnProperty('a') }}",
  ])
    test(source, () => assert.match(failure(() => render(source)).message, /^the chat template failed: /));
});

describe("errors", () => {
  test("the template's own words are kept", () => {
    const error = failure(() => render("{{ raise_exception('Only user and assistant roles!') }}"));
    assert.equal(
      error.message,
      "the model's chat template refuses these messages: Only user and assistant roles!",
    );
    assert.deepEqual(error.details, { raised: "Only user and assistant roles!" });
  });
  const broken: [name: string, source: string, message: RegExp][] = [
    ["an unclosed tag", "{% if x %}", /^the chat template cannot be used: /],
    ["an unclosed expression", "{{ 'x", /cannot be used/],
    ["deep nesting", `{{ ${"(".repeat(50_000)} }}`, /cannot be used: .*call stack/],
    ["too long", "x".repeat(262_145), /cannot be used: 262145 characters long, at most 262144/],
    ["white space that the parser is slow on", " ".repeat(1025), /more than 1024 white space characters/],
  ];
  for (const [name, source, message] of broken)
    test(name, () => assert.match(failure(() => compile(source)).message, message));
  const failing: [source: string, message: RegExp][] = [
    ["{{ 'a' + messages }}", /cannot add StringValue and ArrayValue/],
    ["{{ messages[0] + 'a' }}", /cannot add ObjectValue and StringValue/],
    ["{{ nothing() }}", /not a function/],
    ["{{ 'a'|unknown_filter }}", /Unknown StringValue filter: unknown_filter/],
    ["{{ 'a'.strip(1) }}", /strip takes one string/],
    ["{{ messages|join(', ', attribute='role') }}", /join takes a separator only/],
    ["{{ range('9') }}", /range\(\) takes integers/],
  ];
  for (const [source, message] of failing)
    test(source, () => {
      const error = failure(() => render(source));
      assert.match(error.message, /^the chat template failed: /);
      assert.match(error.message, message);
      assert.ok(error.cause instanceof Error);
    });
  test("variables cannot replace what the template gets from us", () => {
    for (const name of ["messages", "bos_token", "range", "raise_exception", "namespace", "true"])
      assert.match(
        failure(() => render("x", { [name]: 1 })).message,
        new RegExp(`variable ${name} cannot be set`),
      );
  });
});

describe("what is adapted to the template", () => {
  const developer: TemplateMessage[] = [{ role: "developer", content: "Be brief." }];
  const roles = "{% for m in messages %}{{ m.role }}{% endfor %}";
  test("the role developer becomes system", () => assert.equal(render(roles, {}, developer), "system"));
  test("unless the template knows it", () =>
    assert.equal(render(`{# developer #}${roles}`, {}, developer), "developer"));

  const called = (args: Json): TemplateMessage[] => [
    ...HELLO,
    {
      role: "assistant",
      content: null,
      tool_calls: [{ type: "function", function: { name: "f", arguments: args } }],
    },
  ];
  const calls = (write: string) =>
    `{% for m in messages %}{% for c in m.tool_calls %}${write}{% endfor %}{% endfor %}`;
  const cases: [name: string, write: string, expected: string][] = [
    ["a template that writes JSON gets an object", "{{ c.function.arguments|tojson }}", '{"x": 1}'],
    [
      "a template that writes the function gets an object",
      "{{ c.function|tojson }}",
      '{"name": "f", "arguments": {"x": 1}}',
    ],
    ["a template that pastes text gets text", "{{ 'args: ' + c.function.arguments }}", 'args: {"x":1}'],
    [
      "a template that iterates gets an object",
      "{% for k, v in c.function.arguments|items %}{{ k }}={{ v }}{% endfor %}",
      "x=1",
    ],
    [
      "a template that looks gets an object",
      "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments|tojson }}{% endif %}",
      '{"x": 1}',
    ],
  ];
  for (const [name, write, expected] of cases)
    test(name, () => assert.equal(render(calls(write), {}, called({ x: 1 })), expected));
  test("arguments that are not JSON stay as they are", () =>
    assert.equal(render(calls("{{ c.function.arguments }}"), {}, called("x = 1")), "x = 1"));

  test("a property that is undefined is absent", () => {
    const messages: TemplateMessage[] = [
      { role: "user", content: "hello", tool_calls: undefined, name: undefined },
    ];
    assert.equal(
      render("{{ 'tool_calls' in messages[0] }}{{ messages[0].name is defined }}", {}, messages),
      "falsefalse",
    );
  });
  test("tools, and none when the list is empty", () => {
    const template = compile("{% if tools %}{{ tools|tojson }}{% else %}no{% endif %}");
    const options = (tools: Json[]): RenderOptions => ({ addGenerationPrompt: false, tools });
    assert.equal(template.render(HELLO, options([{ type: "function" }])), '[{"type": "function"}]');
    assert.equal(template.render(HELLO, options([])), "no");
  });
  test("rendering does not change the messages, and can be repeated", () => {
    const template = compile(calls("{{ c.function.arguments|tojson }}"));
    const messages = called({ x: 1 });
    const before = structuredClone(messages);
    const options = { addGenerationPrompt: false };
    assert.equal(template.render(messages, options), template.render(messages, options));
    assert.deepEqual(messages, before);
  });
});

describe("which template is used", () => {
  const ofModel = { default: "{{ default }}", tool_use: "{{ tool_use }}" };
  const cases: [
    name: string,
    chosen: string | null,
    ofModel: Record<string, string>,
    hasTools: boolean,
    expected: string,
  ][] = [
    ["the caller's source before the model's", "{{ a }}", ofModel, true, "{{ a }}"],
    ["the model's when nothing is chosen", null, ofModel, false, "{{ default }}"],
    ["the model's for tools when there are tools", null, ofModel, true, "{{ tool_use }}"],
    ["the model's only one, tools or not", null, { default: "{{ default }}" }, true, "{{ default }}"],
  ];
  for (const [name, chosen, templates, hasTools, expected] of cases)
    test(name, () => assert.equal(chooseTemplate(chosen, templates, hasTools), expected));
  test("ChatML by name", () => {
    const messages: TemplateMessage[] = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hi {{ x }}" },
      { role: "assistant", content: "Hello" },
    ];
    const prompt =
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ x }}<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n";
    const template = compile(chooseTemplate("chatml", {}, false)!);
    assert.equal(template.render(messages, { addGenerationPrompt: false }), prompt);
    assert.equal(
      template.render(messages, { addGenerationPrompt: true }),
      `${prompt}<|im_start|>assistant\n`,
    );
  });
  test("neither: none, and an error that says what to do", () => {
    assert.equal(chooseTemplate(null, {}, false), undefined);
    assert.equal(missingTemplate().code, "template-failed");
    assert.match(
      missingTemplate().message,
      /has no chat template.*complete raw text instead, or load the model with chatTemplate: "chatml"/,
    );
  });
});
