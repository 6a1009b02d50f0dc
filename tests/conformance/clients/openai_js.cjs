// What does an unmodified openai client for JavaScript see? Prints one JSON object: case -> outcome.
'use strict';

const { OpenAI } = require('openai');

const served = JSON.parse(process.argv[2]);
const model = served.model;
const client = new OpenAI({ baseURL: `${served.http}/v1`, apiKey: 'none', timeout: 10000, maxRetries: 0 });
const tools = [{
  type: 'function',
  function: {
    name: 'weather',
    description: 'The weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}];
const format = {
  type: 'json_schema',
  json_schema: { name: 'city', schema: { type: 'object', properties: { city: { type: 'string' } } } },
};

function user(content) {
  return [{ role: 'user', content }];
}

function create(text, more = {}, options = {}) {
  return client.chat.completions.create({ model, messages: user(text), ...more }, options);
}

async function wasFreed(name) {
  return (await create(`freed ${name}`)).choices[0].finish_reason;
}

function callsOf(message) {
  return message.tool_calls.map((call) => [call.id, call.function.name, call.function.arguments]);
}

async function refusal(ask) {
  try {
    await ask();
  } catch (error) {
    return {
      class: error.constructor.name, status: error.status, type: error.type, code: error.code, param: error.param,
    };
  }
  return 'no error';
}

const cases = {
  async models() {
    const list = [];
    for await (const found of client.models.list()) list.push(found.id);
    return { list, one: (await client.models.retrieve(model)).id };
  },

  async chat() {
    const answer = await create('hi', {}, { headers: { 'x-request-id': 'from-client' } });
    const choice = answer.choices[0];
    return {
      id: answer._request_id,
      role: choice.message.role,
      text: choice.message.content,
      reason: choice.finish_reason,
      usage: [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
    };
  },

  async stream() {
    const chunks = [];
    const opened = await create('hi', { stream: true, stream_options: { include_usage: true } });
    for await (const chunk of opened) chunks.push(chunk);
    const deltas = chunks.filter((chunk) => chunk.choices.length).map((chunk) => chunk.choices[0]);
    return {
      text: deltas.map((choice) => choice.delta.content ?? '').join(''),
      reason: deltas.at(-1).finish_reason,
      usage: chunks.at(-1).usage.completion_tokens,
    };
  },

  async stream_helper() {
    const opened = client.chat.completions.stream({ model, messages: user('hi') });
    return (await opened.finalChatCompletion()).choices[0].message.content;
  },

  async tools() {
    const answer = (await create('tools please', { tools, tool_choice: 'auto' })).choices[0];
    return { calls: callsOf(answer.message), reason: answer.finish_reason };
  },

  async tools_streamed() {
    const opened = client.chat.completions.stream({ model, messages: user('tools please'), tools });
    return callsOf((await opened.finalChatCompletion()).choices[0].message);
  },

  async tool_result() {
    const call = { id: 'call_1', type: 'function', function: { name: 'weather', arguments: '{"city": "Paris"}' } };
    const messages = [
      ...user('How is the weather?'),
      { role: 'assistant', tool_calls: [call] },
      { role: 'tool', tool_call_id: 'call_1', content: 'sunny' },
    ];
    return (await client.chat.completions.create({ model, messages, tools })).choices[0].message.content;
  },

  async response_format() {
    return (await create('hi', { response_format: format })).choices[0].message.content;
  },

  async parsed() {
    const answer = await client.chat.completions.parse({ model, messages: user('hi'), response_format: format });
    return JSON.parse(answer.choices[0].message.content).city;
  },

  async logprobs() {
    const scored = (await create('hi', { logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
    return scored.map((row) => [row.token, row.logprob, row.top_logprobs.map((top) => top.token)]);
  },

  async choices() {
    return (await create('hi', { n: 2 })).choices.map((choice) => [choice.index, choice.message.content]);
  },

  async completions() {
    const answer = await client.completions.create({ model, prompt: ['a', 'b'], max_tokens: 5 });
    return answer.choices.map((choice) => [choice.index, choice.text, choice.finish_reason]);
  },

  async completion_streamed() {
    let text = '';
    for await (const piece of await client.completions.create({ model, prompt: 'a', stream: true })) {
      for (const choice of piece.choices) text += choice.text;
    }
    return text;
  },

  async errors() {
    return {
      model: await refusal(() => client.chat.completions.create({ model: 'llama-9', messages: user('hi') })),
      field: await refusal(() => create('hi', { temperature: 9 })),
      unknown: await refusal(() => create('hi', { colour: 'red' })),
      overloaded: await refusal(() => create('overloaded')),
      bug: await refusal(() => create('bug')),
    };
  },

  async retry_after() {
    try {
      await create('overloaded');
    } catch (error) {
      return error.headers.get('retry-after');
    }
    return 'no error';
  },

  async broken_stream() {
    let text = '';
    try {
      for await (const chunk of await create('break', { stream: true })) text += chunk.choices[0].delta.content ?? '';
    } catch (error) {
      return { text, code: error.code };
    }
    return 'no error';
  },

  async cancel() {
    const opened = await create('hang openai-js-1', { stream: true });
    for await (const chunk of opened) {
      if (chunk.choices[0].delta.content) break;
    }
    return wasFreed('openai-js-1');
  },

  async timeout() {
    try {
      await create('hang openai-js-2', {}, { timeout: 300 });
    } catch (error) {
      if (error instanceof OpenAI.APIConnectionTimeoutError) return wasFreed('openai-js-2');
      throw error;
    }
    return 'no error';
  },
};

async function main() {
  const found = {};
  for (const [name, run] of Object.entries(cases)) {
    try {
      found[name] = await run();
    } catch (error) {
      found[name] = { raised: error.stack };
    }
  }
  process.stdout.write(JSON.stringify(found));
}

main();
