/** The public names that browsers and Node share. */

export { type Availability, availability } from "./api/availability.ts";
export type { ChatCompletions, Model, PromptProgress, RequestOptions } from "./api/model.ts";
export {
  type ExportPinnedOptions,
  type ImportPinnedOptions,
  type OpenPinnedOptions,
  type PinBits,
  PinnedPrompt,
  type PinnedPrompts,
  type PinOptions,
  type PinProgress,
} from "./api/pinned.ts";
export type { Session, SessionInput, SessionOptions } from "./api/session.ts";
export type {
  AssistantMessage,
  ChatCompletion,
  ChatCompletionChunk,
  ChatCompletionMessage,
  ChatCompletionRequest,
  ChatCompletionRequestNonStreaming,
  ChatCompletionRequestStreaming,
  ChatCompletionStream,
  ChatMessage,
  CompletionRequest,
  CompletionUsage,
  SamplingFields,
  SystemMessage,
  Tool,
  ToolCall,
  ToolMessage,
  UserMessage,
} from "./chat/types.ts";
export { type ErrorCode, type ErrorDetails, InlayError } from "./errors.ts";
export type { AttentionMap, AttentionMapOptions } from "./eval/attention-map.ts";
export type { FinishReason, GenerateEvent, GenerateUsage } from "./generate/events.ts";
export type { HubFile, ModelInput } from "./gguf/source.ts";
export type {
  DecodeAttention,
  DeviceOption,
  KvFormat,
  LoadOptions,
  LoadProgress,
  PrefillAttention,
} from "./options.ts";
export type { DeviceInfo, MemoryReport, ModelInfo } from "./rpc/engine-api.ts";
export type { PinnedInfo } from "./storage/prompt-store.ts";
export type { DecodeOptions, EncodeOptions } from "./tokenizer/tokenizer.ts";
