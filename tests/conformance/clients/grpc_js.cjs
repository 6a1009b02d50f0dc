// What does an unmodified @grpc/grpc-js see? Prints one JSON object: case -> outcome.
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const served = JSON.parse(process.argv[2]);
const LIMIT_MS = 10000;

const packages = grpc.loadPackageDefinition(
  loader.loadSync(
    ['llama31/v1/chat_service.proto', 'llama31/v1/completion_service.proto', 'llama31/v1/model_service.proto',
      'llama31/oip/v2/inference.proto'],
    { includeDirs: [served.protos], keepCase: true, enums: String, longs: Number, defaults: true, oneofs: true },
  ),
);
const credentials = grpc.credentials.createInsecure();
const chat = new packages.llama31.v1.ChatService(served.grpc, credentials);
const completion = new packages.llama31.v1.CompletionService(served.grpc, credentials);
const models = new packages.llama31.v1.ModelService(served.grpc, credentials);
const inference = new packages.inference.GRPCInferenceService(served.grpc, credentials);

const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message RequestInfo { string request_id = 1; }
  message FieldViolation { string field = 1; string description = 2; }
  message BadRequest { repeated FieldViolation field_violations = 1; }`, { keepCase: true }).root;

function spec(text, more = {}) {
  return { spec: { model: served.model, messages: [{ role: 'ROLE_USER', parts: [{ text }] }], ...more } };
}

function options() {
  return { deadline: Date.now() + LIMIT_MS };
}

function ask(client, method, request, metadata = new grpc.Metadata(), callOptions = options()) {
  return new Promise((resolve) => {
    let headers = null;
    const call = client[method](request, metadata, callOptions, (error, response) => {
      resolve({ error, response, headers });
    });
    call.on('metadata', (found) => { headers = found; });
  });
}

function read(call) {
  return new Promise((resolve) => {
    const messages = [];
    let headers = null;
    call.on('metadata', (found) => { headers = found; });
    call.on('data', (message) => messages.push(message));
    call.on('error', (error) => resolve({ messages, headers, error }));
    call.on('end', () => resolve({ messages, headers, error: null }));
  });
}

function details(error) {
  const found = {};
  const status = rpc.lookupType('google.rpc.Status').decode(error.metadata.get('grpc-status-details-bin')[0]);
  for (const detail of status.details) {
    const name = detail.type_url.split('/')[1];
    const type = rpc.lookupType(name);
    found[name.split('.')[2]] = type.toObject(type.decode(detail.value), { longs: Number });
  }
  return found;
}

function textOf(events) {
  return events.map((event) => (event.delta ? event.delta.text : '')).join('');
}

const cases = {
  async chat() {
    const metadata = new grpc.Metadata();
    metadata.set('x-request-id', 'from-js');
    const { response, headers } = await ask(chat, 'Chat', spec('hi'), metadata);
    return {
      text: response.choices[0].message.parts[0].text,
      reason: response.choices[0].finish_reason,
      usage: [response.usage.prompt_tokens, response.usage.output_tokens],
      headers: ['x-request-id', 'x-llama31-replica', 'x-llama31-model-revision'].map((key) => headers.get(key)[0]),
    };
  },

  async stream() {
    const { messages, headers } = await read(chat.StreamChat(spec('hi'), new grpc.Metadata(), options()));
    const events = messages.map((message) => message.event);
    return {
      text: textOf(events),
      sequences: events.map((event) => event.sequence),
      usage: events.at(-1).completed.usage.output_tokens,
      replica: headers.get('x-llama31-replica')[0],
    };
  },

  async completeMany() {
    const call = completion.CompleteMany(new grpc.Metadata(), options());
    call.write({ item_id: 'good', spec: { model: served.model, text: 'hi' } });
    call.write({ item_id: 'bad', spec: { model: served.model, text: 'hi', sampling: { temperature: 9 } } });
    call.end();
    const { messages } = await read(call);
    const found = Object.fromEntries(messages.map((message) => [message.item_id, message]));
    return { good: found.good.response.choices[0].text, bad: found.bad.error.reason };
  },

  async models() {
    const { response } = await ask(models, 'ListModels', {});
    const { response: tokens } = await ask(models, 'Tokenize', { model: served.model, text: 'hi' });
    return { names: response.models.map((model) => model.name), ids: tokens.ids };
  },

  async openInference() {
    const inputs = [
      { name: 'text_input', datatype: 'BYTES', shape: [1], contents: { bytes_contents: [Buffer.from('hi')] } },
    ];
    const { response } = await ask(inference, 'ModelInfer', { model_name: served.model, inputs });
    return Object.fromEntries(response.outputs.map((output) => [
      output.name,
      output.datatype === 'BYTES' ? output.contents.bytes_contents.map(String) : output.contents.uint_contents,
    ]));
  },

  async fieldError() {
    const { error } = await ask(chat, 'Chat', spec('hi', { sampling: { temperature: 9 } }));
    const found = details(error);
    return {
      code: grpc.status[error.code],
      message: error.details,
      info: found.ErrorInfo,
      fields: found.BadRequest.field_violations.map((violation) => violation.field),
    };
  },

  async overloaded() {
    const metadata = new grpc.Metadata();
    metadata.set('x-request-id', 'shed');
    const { error } = await ask(chat, 'Chat', spec('overloaded'), metadata);
    const found = details(error);
    return {
      code: grpc.status[error.code],
      reason: found.ErrorInfo.reason,
      delay: found.RetryInfo.retry_delay,
      id: found.RequestInfo.request_id,
      pushback: error.metadata.get('grpc-retry-pushback-ms')[0],
    };
  },

  async brokenStream() {
    const { messages, error } = await read(chat.StreamChat(spec('break'), new grpc.Metadata(), options()));
    return {
      text: textOf(messages.map((message) => message.event)),
      code: grpc.status[error.code],
      reason: details(error).ErrorInfo.reason,
    };
  },

  async bug() {
    const { error } = await ask(chat, 'Chat', spec('bug'));
    return { code: grpc.status[error.code], message: error.details };
  },

  async cancel() {
    const call = chat.StreamChat(spec('hang js1'), new grpc.Metadata(), options());
    call.on('data', (message) => { if (message.event.delta) call.cancel(); });
    const { error } = await read(call);
    const { response } = await ask(chat, 'Chat', spec('freed js1'));
    return { code: grpc.status[error.code], freed: response.choices[0].finish_reason };
  },

  async deadline() {
    const short = { deadline: Date.now() + 200 };
    const { error } = await ask(chat, 'Chat', spec('hang js2'), new grpc.Metadata(), short);
    const { response } = await ask(chat, 'Chat', spec('freed js2'));
    return { code: grpc.status[error.code], freed: response.choices[0].finish_reason };
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
  for (const client of [chat, completion, models, inference]) client.close();
}

main();
