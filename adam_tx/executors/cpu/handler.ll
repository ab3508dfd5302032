%struct.XLA_FFI_ThreadPool_NumThreads_Args = type { i64, ptr, ptr, ptr }
%struct.XLA_FFI_Error_Create_Args = type { i64, ptr, ptr, i32 }
%struct.XLA_FFI_ThreadPool_Schedule_Args = type { i64, ptr, ptr, ptr, ptr }
%struct.Leaf = type { ptr, i32, i64, i64 }

@.str = private unnamed_addr constant [30 x i8] c"adam_tx: no memory for a step\00", align 1
@.str.1 = private unnamed_addr constant [74 x i8] c"adam_tx: a call with another number of arrays than its kernel is made for\00", align 1
@.str.2 = private unnamed_addr constant [63 x i8] c"adam_tx: a call with other scalars than its kernel is made for\00", align 1
@.str.3 = private unnamed_addr constant [46 x i8] c"adam_tx: an operand of another shape or dtype\00", align 1
@.str.4 = private unnamed_addr constant [44 x i8] c"adam_tx: a result of another shape or dtype\00", align 1
@.str.5 = private unnamed_addr constant [64 x i8] c"adam_tx: an array of another shape or dtype for what is reduced\00", align 1
@.str.6 = private unnamed_addr constant [57 x i8] c"adam_tx: an array of another shape or dtype for a sample\00", align 1

define ptr @adam_tx_call(ptr noundef readonly %0, ptr noundef readonly %1) local_unnamed_addr {
  %3 = alloca i64, align 8
  %4 = alloca %struct.XLA_FFI_ThreadPool_NumThreads_Args, align 8
  %5 = alloca %struct.XLA_FFI_Error_Create_Args, align 8
  %6 = alloca %struct.XLA_FFI_Error_Create_Args, align 8
  %7 = alloca %struct.XLA_FFI_ThreadPool_Schedule_Args, align 8
  %8 = getelementptr inbounds nuw i8, ptr %0, i64 8
  %9 = load ptr, ptr %8, align 8
  %10 = icmp eq ptr %9, null
  br i1 %10, label %20, label %11

11:
  %12 = getelementptr inbounds nuw i8, ptr %9, i64 8
  %13 = load i32, ptr %12, align 8
  %14 = icmp eq i32 %13, 1
  br i1 %14, label %15, label %20

15:
  %16 = getelementptr inbounds nuw i8, ptr %9, i64 24
  %17 = load ptr, ptr %16, align 8
  %18 = getelementptr inbounds nuw i8, ptr %17, i64 24
  store i32 0, ptr %18, align 8
  %19 = getelementptr inbounds nuw i8, ptr %17, i64 28
  store i32 1, ptr %19, align 4
  br label %551

20:
  %21 = getelementptr inbounds nuw i8, ptr %0, i64 32
  %22 = load i32, ptr %21, align 8
  %23 = icmp eq i32 %22, 3
  br i1 %23, label %24, label %551

24:
  %25 = getelementptr inbounds nuw i8, ptr %0, i64 56
  %26 = load i64, ptr %25, align 8
  %27 = icmp slt i64 %26, 2
  br i1 %27, label %33, label %28

28:
  %29 = add nsw i64 %26, -2
  %30 = getelementptr inbounds nuw i8, ptr %1, i64 8
  %31 = load i64, ptr %30, align 8
  %32 = sdiv i64 %29, %31
  br label %33

33:
  %34 = phi i64 [ %32, %28 ], [ 0, %24 ]
  %35 = getelementptr inbounds nuw i8, ptr %0, i64 72
  %36 = load ptr, ptr %35, align 8
  %37 = getelementptr inbounds nuw i8, ptr %0, i64 112
  %38 = load ptr, ptr %37, align 8
  %39 = getelementptr inbounds nuw i8, ptr %1, i64 16
  %40 = load i64, ptr %39, align 8
  %41 = mul nsw i64 %40, %34
  %42 = getelementptr inbounds nuw i8, ptr %1, i64 24
  %43 = load i64, ptr %42, align 8
  %44 = icmp sgt i64 %43, 0
  %45 = zext i1 %44 to i64
  %46 = add nsw i64 %41, %45
  %47 = getelementptr inbounds nuw i8, ptr %1, i64 32
  %48 = load i64, ptr %47, align 8
  %49 = icmp sgt i64 %48, 0
  %50 = zext i1 %49 to i64
  %51 = add nsw i64 %46, %50
  %52 = icmp slt i64 %34, 1
  br i1 %52, label %237, label %53

53:
  %54 = getelementptr inbounds nuw i8, ptr %1, i64 8
  %55 = load i64, ptr %54, align 8
  %56 = mul nsw i64 %55, %34
  %57 = add nsw i64 %56, 2
  %58 = icmp eq i64 %26, %57
  br i1 %58, label %59, label %237

59:
  %60 = getelementptr inbounds nuw i8, ptr %0, i64 96
  %61 = load i64, ptr %60, align 8
  %62 = icmp eq i64 %61, %51
  br i1 %62, label %63, label %237

63:
  %64 = load ptr, ptr %36, align 8
  %65 = getelementptr inbounds nuw i8, ptr %64, i64 32
  %66 = load i64, ptr %65, align 8
  %67 = icmp sgt i64 %66, 0
  br i1 %67, label %68, label %79

68:
  %69 = getelementptr inbounds nuw i8, ptr %64, i64 40
  %70 = load ptr, ptr %69, align 8
  br label %71

71:
  %72 = phi i64 [ 0, %68 ], [ %77, %71 ]
  %73 = phi i64 [ 1, %68 ], [ %76, %71 ]
  %74 = getelementptr inbounds nuw i64, ptr %70, i64 %72
  %75 = load i64, ptr %74, align 8
  %76 = mul nsw i64 %75, %73
  %77 = add nuw nsw i64 %72, 1
  %78 = icmp eq i64 %77, %66
  br i1 %78, label %79, label %71

79:
  %80 = phi i64 [ 1, %63 ], [ %76, %71 ]
  %81 = getelementptr inbounds nuw i8, ptr %1, i64 40
  %82 = load i64, ptr %81, align 8
  %83 = icmp eq i64 %80, %82
  br i1 %83, label %84, label %237

84:
  %85 = getelementptr inbounds nuw i8, ptr %36, i64 8
  %86 = load ptr, ptr %85, align 8
  %87 = getelementptr inbounds nuw i8, ptr %86, i64 32
  %88 = load i64, ptr %87, align 8
  %89 = icmp sgt i64 %88, 0
  br i1 %89, label %90, label %101

90:
  %91 = getelementptr inbounds nuw i8, ptr %86, i64 40
  %92 = load ptr, ptr %91, align 8
  br label %93

93:
  %94 = phi i64 [ 0, %90 ], [ %99, %93 ]
  %95 = phi i64 [ 1, %90 ], [ %98, %93 ]
  %96 = getelementptr inbounds nuw i64, ptr %92, i64 %94
  %97 = load i64, ptr %96, align 8
  %98 = mul nsw i64 %97, %95
  %99 = add nuw nsw i64 %94, 1
  %100 = icmp eq i64 %99, %88
  br i1 %100, label %101, label %93

101:
  %102 = phi i64 [ 1, %84 ], [ %98, %93 ]
  %103 = icmp eq i64 %102, %34
  br i1 %103, label %104, label %237

104:
  %105 = getelementptr inbounds nuw i8, ptr %64, i64 16
  %106 = load i32, ptr %105, align 8
  %107 = icmp eq i32 %106, 8
  br i1 %107, label %108, label %237

108:
  %109 = getelementptr inbounds nuw i8, ptr %86, i64 16
  %110 = load i32, ptr %109, align 8
  %111 = icmp eq i32 %110, 8
  br i1 %111, label %112, label %237

112:
  %113 = getelementptr inbounds nuw i8, ptr %36, i64 16
  %114 = icmp sgt i64 %55, 0
  %115 = icmp sgt i64 %40, 0
  br label %116

116:
  %117 = phi i64 [ 0, %112 ], [ %147, %146 ]
  %118 = mul nsw i64 %117, %55
  %119 = getelementptr inbounds ptr, ptr %113, i64 %118
  %120 = mul nsw i64 %117, %40
  %121 = getelementptr inbounds ptr, ptr %38, i64 %120
  br i1 %114, label %122, label %127

122:
  %123 = load ptr, ptr %119, align 8
  br label %130

124:
  %125 = add nuw nsw i64 %131, 1
  %126 = icmp eq i64 %125, %55
  br i1 %126, label %127, label %130

127:
  br i1 %115, label %128, label %146

128:
  %129 = load ptr, ptr %119, align 8
  br label %139

130:
  %131 = phi i64 [ 0, %122 ], [ %125, %124 ]
  %132 = getelementptr inbounds nuw ptr, ptr %119, i64 %131
  %133 = load ptr, ptr %132, align 8
  %134 = tail call fastcc i32 @fits(ptr noundef readonly %1, i64 noundef %131, ptr noundef %133, ptr noundef %123)
  %135 = icmp eq i32 %134, 0
  br i1 %135, label %237, label %124

136:
  %137 = add nuw nsw i64 %140, 1
  %138 = icmp eq i64 %137, %40
  br i1 %138, label %146, label %139

139:
  %140 = phi i64 [ 0, %128 ], [ %137, %136 ]
  %141 = add nsw i64 %140, %55
  %142 = getelementptr inbounds nuw ptr, ptr %121, i64 %140
  %143 = load ptr, ptr %142, align 8
  %144 = tail call fastcc i32 @fits(ptr noundef readonly %1, i64 noundef %141, ptr noundef %143, ptr noundef %129)
  %145 = icmp eq i32 %144, 0
  br i1 %145, label %237, label %136

146:
  %147 = add nuw nsw i64 %117, 1
  %148 = icmp eq i64 %147, %34
  br i1 %148, label %149, label %116

149:
  %150 = icmp eq i64 %48, 0
  %151 = add i64 %48, -1
  br label %154

152:
  %153 = icmp eq i64 %43, 0
  br i1 %153, label %210, label %185

154:
  %155 = phi i64 [ 0, %149 ], [ %183, %180 ]
  %156 = phi i64 [ 0, %149 ], [ %182, %180 ]
  %157 = mul nsw i64 %155, %55
  %158 = getelementptr ptr, ptr %36, i64 %157
  %159 = getelementptr i8, ptr %158, i64 16
  %160 = load ptr, ptr %159, align 8
  br i1 %150, label %180, label %161

161:
  %162 = getelementptr inbounds nuw i8, ptr %160, i64 32
  %163 = load i64, ptr %162, align 8
  %164 = icmp sgt i64 %163, 0
  br i1 %164, label %165, label %176

165:
  %166 = getelementptr inbounds nuw i8, ptr %160, i64 40
  %167 = load ptr, ptr %166, align 8
  br label %168

168:
  %169 = phi i64 [ 0, %165 ], [ %174, %168 ]
  %170 = phi i64 [ 1, %165 ], [ %173, %168 ]
  %171 = getelementptr inbounds nuw i64, ptr %167, i64 %169
  %172 = load i64, ptr %171, align 8
  %173 = mul nsw i64 %172, %170
  %174 = add nuw nsw i64 %169, 1
  %175 = icmp eq i64 %174, %163
  br i1 %175, label %176, label %168

176:
  %177 = phi i64 [ 1, %161 ], [ %173, %168 ]
  %178 = add i64 %151, %177
  %179 = sdiv i64 %178, %48
  br label %180

180:
  %181 = phi i64 [ %179, %176 ], [ 0, %154 ]
  %182 = add nsw i64 %181, %156
  %183 = add nuw nsw i64 %155, 1
  %184 = icmp eq i64 %183, %34
  br i1 %184, label %152, label %154

185:
  %186 = getelementptr inbounds ptr, ptr %38, i64 %41
  %187 = load ptr, ptr %186, align 8
  %188 = mul nsw i64 %43, %34
  %189 = getelementptr inbounds nuw i8, ptr %187, i64 16
  %190 = load i32, ptr %189, align 8
  %191 = icmp eq i32 %190, 11
  br i1 %191, label %192, label %237

192:
  %193 = getelementptr inbounds nuw i8, ptr %187, i64 32
  %194 = load i64, ptr %193, align 8
  %195 = icmp sgt i64 %194, 0
  br i1 %195, label %196, label %207

196:
  %197 = getelementptr inbounds nuw i8, ptr %187, i64 40
  %198 = load ptr, ptr %197, align 8
  br label %199

199:
  %200 = phi i64 [ 0, %196 ], [ %205, %199 ]
  %201 = phi i64 [ 1, %196 ], [ %204, %199 ]
  %202 = getelementptr inbounds nuw i64, ptr %198, i64 %200
  %203 = load i64, ptr %202, align 8
  %204 = mul nsw i64 %203, %201
  %205 = add nuw nsw i64 %200, 1
  %206 = icmp eq i64 %205, %194
  br i1 %206, label %207, label %199

207:
  %208 = phi i64 [ 1, %192 ], [ %204, %199 ]
  %209 = icmp eq i64 %208, %188
  br i1 %209, label %210, label %237

210:
  br i1 %150, label %211, label %212

211:
  br label %248

212:
  %213 = getelementptr ptr, ptr %38, i64 %51
  %214 = getelementptr i8, ptr %213, i64 -8
  %215 = load ptr, ptr %214, align 8
  %216 = getelementptr inbounds nuw i8, ptr %215, i64 16
  %217 = load i32, ptr %216, align 8
  %218 = icmp eq i32 %217, 11
  br i1 %218, label %219, label %237

219:
  %220 = getelementptr inbounds nuw i8, ptr %215, i64 32
  %221 = load i64, ptr %220, align 8
  %222 = icmp sgt i64 %221, 0
  br i1 %222, label %223, label %234

223:
  %224 = getelementptr inbounds nuw i8, ptr %215, i64 40
  %225 = load ptr, ptr %224, align 8
  br label %226

226:
  %227 = phi i64 [ 0, %223 ], [ %232, %226 ]
  %228 = phi i64 [ 1, %223 ], [ %231, %226 ]
  %229 = getelementptr inbounds nuw i64, ptr %225, i64 %227
  %230 = load i64, ptr %229, align 8
  %231 = mul nsw i64 %230, %228
  %232 = add nuw nsw i64 %227, 1
  %233 = icmp eq i64 %232, %221
  br i1 %233, label %234, label %226

234:
  %235 = phi i64 [ 1, %219 ], [ %231, %226 ]
  %236 = icmp eq i64 %235, %182
  br i1 %236, label %211, label %237

237:
  %238 = phi ptr [ @.str.4, %139 ], [ @.str.6, %212 ], [ @.str.5, %185 ], [ @.str.6, %234 ], [ @.str.5, %207 ], [ @.str.2, %101 ], [ @.str.2, %104 ], [ @.str.2, %108 ], [ @.str.1, %53 ], [ @.str.1, %59 ], [ @.str.2, %79 ], [ @.str.1, %33 ], [ @.str.3, %130 ]
  store i64 32, ptr %6, align 8
  %239 = getelementptr inbounds nuw i8, ptr %6, i64 8
  store ptr null, ptr %239, align 8
  %240 = getelementptr inbounds nuw i8, ptr %6, i64 16
  store ptr %238, ptr %240, align 8
  %241 = getelementptr inbounds nuw i8, ptr %6, i64 24
  store i32 3, ptr %241, align 8
  %242 = getelementptr inbounds nuw i8, ptr %6, i64 28
  store i32 0, ptr %242, align 4
  %243 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %244 = load ptr, ptr %243, align 8
  %245 = getelementptr inbounds nuw i8, ptr %244, i64 48
  %246 = load ptr, ptr %245, align 8
  %247 = call ptr %246(ptr noundef nonnull %6)
  br label %551

248:
  %249 = phi i64 [ %257, %248 ], [ 0, %211 ]
  %250 = phi i64 [ %256, %248 ], [ 0, %211 ]
  %251 = mul nsw i64 %249, %55
  %252 = getelementptr ptr, ptr %36, i64 %251
  %253 = getelementptr i8, ptr %252, i64 16
  %254 = load ptr, ptr %253, align 8
  %255 = tail call fastcc i64 @tiles_of(ptr noundef nonnull readonly %1, ptr noundef %254)
  %256 = add nsw i64 %255, %250
  %257 = add nuw nsw i64 %249, 1
  %258 = icmp eq i64 %257, %34
  br i1 %258, label %259, label %248

259:
  %260 = add i64 %43, %40
  %261 = add i64 %260, %50
  %262 = add i64 %261, %55
  %263 = shl i64 %262, 3
  %264 = add i64 %263, 32
  %265 = mul i64 %264, %34
  %266 = add i64 %265, 80
  %267 = shl i64 %43, 2
  %268 = mul i64 %267, %256
  %269 = add i64 %266, %268
  %270 = tail call noalias ptr @malloc(i64 noundef %269)
  %271 = icmp eq ptr %270, null
  br i1 %271, label %408, label %272

272:
  %273 = getelementptr inbounds nuw i8, ptr %270, i64 80
  %274 = getelementptr inbounds nuw %struct.Leaf, ptr %273, i64 %34
  %275 = mul nsw i64 %262, %34
  %276 = getelementptr inbounds ptr, ptr %274, i64 %275
  %277 = getelementptr inbounds nuw i8, ptr %270, i64 72
  store ptr %276, ptr %277, align 8
  br i1 %150, label %284, label %278

278:
  %279 = getelementptr ptr, ptr %38, i64 %41
  %280 = getelementptr ptr, ptr %279, i64 %45
  %281 = load ptr, ptr %280, align 8
  %282 = getelementptr inbounds nuw i8, ptr %281, i64 24
  %283 = load ptr, ptr %282, align 8
  br label %284

284:
  %285 = phi ptr [ %283, %278 ], [ null, %272 ]
  %286 = load ptr, ptr %1, align 8
  %287 = getelementptr inbounds nuw i8, ptr %270, i64 56
  store ptr %286, ptr %287, align 8
  %288 = load ptr, ptr %36, align 8
  %289 = getelementptr inbounds nuw i8, ptr %288, i64 24
  %290 = load ptr, ptr %289, align 8
  %291 = getelementptr inbounds nuw i8, ptr %270, i64 64
  store ptr %290, ptr %291, align 8
  %292 = getelementptr inbounds nuw i8, ptr %270, i64 48
  store i64 %34, ptr %292, align 8
  %293 = getelementptr inbounds nuw i8, ptr %270, i64 40
  store i64 0, ptr %293, align 8
  %294 = getelementptr inbounds nuw i8, ptr %1, i64 56
  %295 = load i64, ptr %294, align 8
  %296 = icmp eq i64 %295, 0
  br label %297

297:
  %298 = phi i64 [ 0, %284 ], [ %405, %403 ]
  %299 = phi ptr [ %285, %284 ], [ %404, %403 ]
  %300 = phi i64 [ 0, %284 ], [ %406, %403 ]
  %301 = mul nsw i64 %300, %55
  %302 = getelementptr inbounds ptr, ptr %113, i64 %301
  %303 = mul nsw i64 %300, %40
  %304 = getelementptr inbounds ptr, ptr %38, i64 %303
  %305 = getelementptr inbounds nuw %struct.Leaf, ptr %273, i64 %300
  %306 = mul nsw i64 %300, %262
  %307 = getelementptr inbounds ptr, ptr %274, i64 %306
  store ptr %307, ptr %305, align 8
  %308 = load ptr, ptr %85, align 8
  %309 = getelementptr inbounds nuw i8, ptr %308, i64 24
  %310 = load ptr, ptr %309, align 8
  %311 = getelementptr inbounds nuw i32, ptr %310, i64 %300
  %312 = load i32, ptr %311, align 4
  %313 = getelementptr inbounds nuw i8, ptr %305, i64 8
  store i32 %312, ptr %313, align 8
  %314 = load ptr, ptr %302, align 8
  %315 = getelementptr inbounds nuw i8, ptr %314, i64 32
  %316 = load i64, ptr %315, align 8
  br i1 %296, label %325, label %317

317:
  %318 = icmp eq i64 %316, 0
  br i1 %318, label %338, label %319

319:
  %320 = getelementptr inbounds nuw i8, ptr %314, i64 40
  %321 = load ptr, ptr %320, align 8
  %322 = getelementptr i64, ptr %321, i64 %316
  %323 = getelementptr i8, ptr %322, i64 -8
  %324 = load i64, ptr %323, align 8
  br label %338

325:
  %326 = icmp sgt i64 %316, 0
  br i1 %326, label %327, label %338

327:
  %328 = getelementptr inbounds nuw i8, ptr %314, i64 40
  %329 = load ptr, ptr %328, align 8
  br label %330

330:
  %331 = phi i64 [ 0, %327 ], [ %336, %330 ]
  %332 = phi i64 [ 1, %327 ], [ %335, %330 ]
  %333 = getelementptr inbounds nuw i64, ptr %329, i64 %331
  %334 = load i64, ptr %333, align 8
  %335 = mul nsw i64 %334, %332
  %336 = add nuw nsw i64 %331, 1
  %337 = icmp eq i64 %336, %316
  br i1 %337, label %338, label %330

338:
  %339 = phi i64 [ %324, %319 ], [ 1, %325 ], [ 1, %317 ], [ %335, %330 ]
  %340 = getelementptr inbounds nuw i8, ptr %305, i64 16
  store i64 %339, ptr %340, align 8
  %341 = tail call fastcc i64 @tiles_of(ptr noundef nonnull readonly %1, ptr noundef nonnull %314)
  %342 = getelementptr inbounds nuw i8, ptr %305, i64 24
  store i64 %341, ptr %342, align 8
  br i1 %114, label %344, label %343

343:
  br i1 %115, label %355, label %354

344:
  %345 = phi i64 [ %352, %344 ], [ 0, %338 ]
  %346 = getelementptr inbounds nuw ptr, ptr %302, i64 %345
  %347 = load ptr, ptr %346, align 8
  %348 = getelementptr inbounds nuw i8, ptr %347, i64 24
  %349 = load ptr, ptr %348, align 8
  %350 = load ptr, ptr %305, align 8
  %351 = getelementptr inbounds nuw ptr, ptr %350, i64 %345
  store ptr %349, ptr %351, align 8
  %352 = add nuw nsw i64 %345, 1
  %353 = icmp eq i64 %352, %55
  br i1 %353, label %343, label %344

354:
  br i1 %44, label %367, label %366

355:
  %356 = phi i64 [ %364, %355 ], [ 0, %343 ]
  %357 = getelementptr inbounds nuw ptr, ptr %304, i64 %356
  %358 = load ptr, ptr %357, align 8
  %359 = getelementptr inbounds nuw i8, ptr %358, i64 24
  %360 = load ptr, ptr %359, align 8
  %361 = load ptr, ptr %305, align 8
  %362 = getelementptr ptr, ptr %361, i64 %55
  %363 = getelementptr ptr, ptr %362, i64 %356
  store ptr %360, ptr %363, align 8
  %364 = add nuw nsw i64 %356, 1
  %365 = icmp eq i64 %364, %40
  br i1 %365, label %354, label %355

366:
  br i1 %150, label %403, label %379

367:
  %368 = phi i64 [ %377, %367 ], [ 0, %354 ]
  %369 = load ptr, ptr %277, align 8
  %370 = mul nsw i64 %368, %256
  %371 = getelementptr inbounds float, ptr %369, i64 %370
  %372 = getelementptr inbounds float, ptr %371, i64 %298
  %373 = load ptr, ptr %305, align 8
  %374 = getelementptr ptr, ptr %373, i64 %55
  %375 = getelementptr ptr, ptr %374, i64 %40
  %376 = getelementptr ptr, ptr %375, i64 %368
  store ptr %372, ptr %376, align 8
  %377 = add nuw nsw i64 %368, 1
  %378 = icmp eq i64 %377, %43
  br i1 %378, label %366, label %367

379:
  %380 = load ptr, ptr %305, align 8
  %381 = getelementptr ptr, ptr %380, i64 %262
  %382 = getelementptr i8, ptr %381, i64 -8
  store ptr %299, ptr %382, align 8
  %383 = load ptr, ptr %302, align 8
  %384 = getelementptr inbounds nuw i8, ptr %383, i64 32
  %385 = load i64, ptr %384, align 8
  %386 = icmp sgt i64 %385, 0
  br i1 %386, label %387, label %398

387:
  %388 = getelementptr inbounds nuw i8, ptr %383, i64 40
  %389 = load ptr, ptr %388, align 8
  br label %390

390:
  %391 = phi i64 [ 0, %387 ], [ %396, %390 ]
  %392 = phi i64 [ 1, %387 ], [ %395, %390 ]
  %393 = getelementptr inbounds nuw i64, ptr %389, i64 %391
  %394 = load i64, ptr %393, align 8
  %395 = mul nsw i64 %394, %392
  %396 = add nuw nsw i64 %391, 1
  %397 = icmp eq i64 %396, %385
  br i1 %397, label %398, label %390

398:
  %399 = phi i64 [ 1, %379 ], [ %395, %390 ]
  %400 = add i64 %151, %399
  %401 = sdiv i64 %400, %48
  %402 = getelementptr inbounds float, ptr %299, i64 %401
  br label %403

403:
  %404 = phi ptr [ %402, %398 ], [ %299, %366 ]
  %405 = add nsw i64 %341, %298
  store i64 %405, ptr %293, align 8
  %406 = add nuw nsw i64 %300, 1
  %407 = icmp eq i64 %406, %34
  br i1 %407, label %418, label %297

408:
  store i64 32, ptr %5, align 8
  %409 = getelementptr inbounds nuw i8, ptr %5, i64 8
  store ptr null, ptr %409, align 8
  %410 = getelementptr inbounds nuw i8, ptr %5, i64 16
  store ptr @.str, ptr %410, align 8
  %411 = getelementptr inbounds nuw i8, ptr %5, i64 24
  store i32 3, ptr %411, align 8
  %412 = getelementptr inbounds nuw i8, ptr %5, i64 28
  store i32 0, ptr %412, align 4
  %413 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %414 = load ptr, ptr %413, align 8
  %415 = getelementptr inbounds nuw i8, ptr %414, i64 48
  %416 = load ptr, ptr %415, align 8
  %417 = call ptr %416(ptr noundef nonnull %5)
  br label %551

418:
  %419 = getelementptr inbounds nuw i8, ptr %1, i64 48
  %420 = load i64, ptr %419, align 8
  store i64 1, ptr %3, align 8
  store i64 32, ptr %4, align 8
  %421 = getelementptr inbounds nuw i8, ptr %4, i64 8
  store ptr null, ptr %421, align 8
  %422 = getelementptr inbounds nuw i8, ptr %4, i64 16
  %423 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %424 = load ptr, ptr %423, align 8
  store ptr %424, ptr %422, align 8
  %425 = getelementptr inbounds nuw i8, ptr %4, i64 24
  store ptr %3, ptr %425, align 8
  %426 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %427 = load ptr, ptr %426, align 8
  %428 = getelementptr inbounds nuw i8, ptr %427, i64 144
  %429 = load ptr, ptr %428, align 8
  %430 = call ptr %429(ptr noundef nonnull %4)
  %431 = icmp eq ptr %430, null
  %432 = load i64, ptr %3, align 8
  %433 = select i1 %431, i64 %432, i64 1
  %434 = add nsw i64 %420, 32767
  %435 = sdiv i64 %434, %420
  %436 = load i64, ptr %293, align 8
  %437 = add i64 %436, -1
  %438 = add i64 %437, %435
  %439 = sdiv i64 %438, %435
  %440 = shl nsw i64 %433, 3
  %441 = call i64 @llvm.smin.i64(i64 %439, i64 %440)
  %442 = call i64 @llvm.smax.i64(i64 %441, i64 1)
  %443 = add i64 %442, %437
  %444 = sdiv i64 %443, %442
  %445 = getelementptr inbounds nuw i8, ptr %270, i64 32
  store i64 %444, ptr %445, align 8
  %446 = icmp eq i64 %444, 0
  br i1 %446, label %450, label %447

447:
  %448 = add i64 %444, %437
  %449 = sdiv i64 %448, %444
  br label %450

450:
  %451 = phi i64 [ %449, %447 ], [ 0, %418 ]
  %452 = getelementptr inbounds nuw i8, ptr %270, i64 24
  store i64 %451, ptr %452, align 8
  %453 = call i64 @llvm.smin.i64(i64 %433, i64 %451)
  %454 = call i64 @llvm.smax.i64(i64 %453, i64 1)
  store atomic i64 0, ptr %270 seq_cst, align 8
  %455 = getelementptr inbounds nuw i8, ptr %270, i64 8
  store atomic i64 0, ptr %455 seq_cst, align 8
  %456 = getelementptr inbounds nuw i8, ptr %270, i64 16
  store atomic i64 %454, ptr %456 seq_cst, align 8
  %457 = icmp sgt i64 %453, 1
  br i1 %457, label %458, label %464

458:
  %459 = getelementptr inbounds nuw i8, ptr %7, i64 8
  %460 = getelementptr inbounds nuw i8, ptr %7, i64 16
  %461 = getelementptr inbounds nuw i8, ptr %7, i64 24
  %462 = getelementptr inbounds nuw i8, ptr %7, i64 32
  %463 = add nsw i64 %454, -2
  br label %468

464:
  call fastcc void @work(ptr noundef nonnull %270)
  %465 = load atomic i64, ptr %455 acquire, align 8
  %466 = load i64, ptr %452, align 8
  %467 = icmp slt i64 %465, %466
  br i1 %467, label %483, label %487

468:
  %469 = phi i64 [ 0, %458 ], [ %481, %480 ]
  store i64 40, ptr %7, align 8
  store ptr null, ptr %459, align 8
  %470 = load ptr, ptr %423, align 8
  store ptr %470, ptr %460, align 8
  store ptr @helper, ptr %461, align 8
  store ptr %270, ptr %462, align 8
  %471 = load ptr, ptr %426, align 8
  %472 = getelementptr inbounds nuw i8, ptr %471, i64 136
  %473 = load ptr, ptr %472, align 8
  %474 = call ptr %473(ptr noundef nonnull %7)
  %475 = icmp eq ptr %474, null
  br i1 %475, label %480, label %476

476:
  %477 = atomicrmw sub ptr %456, i64 1 acq_rel, align 8
  %478 = icmp eq i64 %477, 1
  br i1 %478, label %479, label %480

479:
  call void @free(ptr noundef nonnull %270)
  br label %480

480:
  %481 = add nuw nsw i64 %469, 1
  %482 = icmp eq i64 %469, %463
  br i1 %482, label %464, label %468

483:
  call void @adam_tx_wait()
  %484 = load atomic i64, ptr %455 acquire, align 8
  %485 = load i64, ptr %452, align 8
  %486 = icmp slt i64 %484, %485
  br i1 %486, label %483, label %487

487:
  %488 = load i64, ptr %42, align 8
  %489 = icmp sgt i64 %488, 0
  br i1 %489, label %490, label %547

490:
  %491 = load ptr, ptr %37, align 8
  %492 = load i64, ptr %39, align 8
  %493 = mul nsw i64 %492, %34
  %494 = getelementptr inbounds ptr, ptr %491, i64 %493
  %495 = load ptr, ptr %494, align 8
  %496 = load ptr, ptr %277, align 8
  %497 = load i64, ptr %292, align 8
  %498 = icmp sgt i64 %497, 0
  %499 = getelementptr inbounds nuw i8, ptr %1, i64 80
  %500 = getelementptr inbounds nuw i8, ptr %495, i64 24
  br label %501

501:
  %502 = phi i64 [ 0, %490 ], [ %512, %510 ]
  %503 = phi ptr [ %496, %490 ], [ %511, %510 ]
  br i1 %498, label %504, label %510

504:
  %505 = load ptr, ptr %499, align 8
  %506 = getelementptr inbounds nuw i8, ptr %505, i64 %502
  %507 = load ptr, ptr %500, align 8
  %508 = mul nuw nsw i64 %502, %497
  %509 = getelementptr float, ptr %507, i64 %508
  br label %514

510:
  %511 = phi ptr [ %503, %501 ], [ %544, %538 ]
  %512 = add nuw nsw i64 %502, 1
  %513 = icmp eq i64 %512, %488
  br i1 %513, label %547, label %501

514:
  %515 = phi i64 [ 0, %504 ], [ %545, %538 ]
  %516 = phi ptr [ %503, %504 ], [ %544, %538 ]
  %517 = getelementptr inbounds nuw %struct.Leaf, ptr %270, i64 %515
  %518 = getelementptr inbounds nuw i8, ptr %517, i64 104
  %519 = load i64, ptr %518, align 8
  %520 = load i8, ptr %506, align 1
  %521 = icmp sgt i64 %519, 0
  br i1 %521, label %524, label %538

522:
  %523 = fptrunc double %531 to float
  br label %538

524:
  %525 = phi i64 [ %536, %524 ], [ 0, %514 ]
  %526 = phi float [ %535, %524 ], [ 0.000000e+00, %514 ]
  %527 = phi double [ %531, %524 ], [ 0.000000e+00, %514 ]
  %528 = getelementptr inbounds nuw float, ptr %516, i64 %525
  %529 = load float, ptr %528, align 4
  %530 = fpext float %529 to double
  %531 = fadd double %527, %530
  %532 = fcmp ogt float %529, %526
  %533 = fcmp uno float %529, 0.000000e+00
  %534 = or i1 %532, %533
  %535 = select i1 %534, float %529, float %526
  %536 = add nuw nsw i64 %525, 1
  %537 = icmp eq i64 %536, %519
  br i1 %537, label %522, label %524

538:
  %539 = phi float [ 0.000000e+00, %514 ], [ %523, %522 ]
  %540 = phi float [ 0.000000e+00, %514 ], [ %535, %522 ]
  %541 = icmp eq i8 %520, 0
  %542 = select i1 %541, float %539, float %540
  %543 = getelementptr float, ptr %509, i64 %515
  store float %542, ptr %543, align 4
  %544 = getelementptr inbounds float, ptr %516, i64 %519
  %545 = add nuw nsw i64 %515, 1
  %546 = icmp eq i64 %545, %497
  br i1 %546, label %510, label %514

547:
  %548 = atomicrmw sub ptr %456, i64 1 acq_rel, align 8
  %549 = icmp eq i64 %548, 1
  br i1 %549, label %550, label %551

550:
  call void @free(ptr noundef nonnull %270)
  br label %551

551:
  %552 = phi ptr [ null, %15 ], [ null, %20 ], [ %247, %237 ], [ %417, %408 ], [ null, %547 ], [ null, %550 ]
  ret ptr %552
}

define internal void @helper(ptr noundef %0) {
  tail call fastcc void @work(ptr noundef %0)
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %3 = atomicrmw sub ptr %2, i64 1 acq_rel, align 8
  %4 = icmp eq i64 %3, 1
  br i1 %4, label %5, label %6

5:
  tail call void @free(ptr noundef %0)
  br label %6

6:
  ret void
}

define internal fastcc void @work(ptr noundef %0) unnamed_addr {
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %3 = atomicrmw add ptr %0, i64 1 monotonic, align 8
  %4 = load i64, ptr %2, align 8
  %5 = icmp slt i64 %3, %4
  br i1 %5, label %6, label %58

6:
  %7 = getelementptr inbounds nuw i8, ptr %0, i64 32
  %8 = getelementptr inbounds nuw i8, ptr %0, i64 48
  %9 = getelementptr inbounds nuw i8, ptr %0, i64 80
  %10 = getelementptr inbounds nuw i8, ptr %0, i64 56
  %11 = getelementptr inbounds nuw i8, ptr %0, i64 64
  %12 = getelementptr inbounds nuw i8, ptr %0, i64 8
  br label %13

13:
  %14 = phi i64 [ %3, %6 ], [ %55, %53 ]
  %15 = load i64, ptr %7, align 8
  %16 = mul nsw i64 %15, %14
  %17 = add nsw i64 %16, %15
  %18 = load i64, ptr %8, align 8
  %19 = icmp sgt i64 %18, 0
  %20 = icmp sgt i64 %17, 0
  %21 = select i1 %19, i1 %20, i1 false
  br i1 %21, label %22, label %53

22:
  %23 = phi i64 [ %46, %45 ], [ %18, %13 ]
  %24 = phi i64 [ %48, %45 ], [ 0, %13 ]
  %25 = phi i64 [ %49, %45 ], [ 0, %13 ]
  %26 = getelementptr inbounds nuw %struct.Leaf, ptr %9, i64 %25
  %27 = icmp sgt i64 %16, %24
  %28 = sub nsw i64 %16, %24
  %29 = select i1 %27, i64 %28, i64 0
  %30 = sub nsw i64 %17, %24
  %31 = getelementptr inbounds nuw i8, ptr %26, i64 24
  %32 = load i64, ptr %31, align 8
  %33 = tail call i64 @llvm.smin.i64(i64 %30, i64 %32)
  %34 = icmp slt i64 %29, %33
  br i1 %34, label %35, label %45

35:
  %36 = load ptr, ptr %10, align 8
  %37 = load ptr, ptr %26, align 8
  %38 = load ptr, ptr %11, align 8
  %39 = getelementptr inbounds nuw i8, ptr %26, i64 8
  %40 = load i32, ptr %39, align 8
  %41 = getelementptr inbounds nuw i8, ptr %26, i64 16
  %42 = load i64, ptr %41, align 8
  tail call void %36(ptr noundef %37, ptr noundef %38, i32 noundef %40, i64 noundef %42, i64 noundef %29, i64 noundef %33)
  %43 = load i64, ptr %31, align 8
  %44 = load i64, ptr %8, align 8
  br label %45

45:
  %46 = phi i64 [ %44, %35 ], [ %23, %22 ]
  %47 = phi i64 [ %43, %35 ], [ %32, %22 ]
  %48 = add nsw i64 %47, %24
  %49 = add nuw nsw i64 %25, 1
  %50 = icmp slt i64 %49, %46
  %51 = icmp slt i64 %48, %17
  %52 = select i1 %50, i1 %51, i1 false
  br i1 %52, label %22, label %53

53:
  %54 = atomicrmw add ptr %12, i64 1 release, align 8
  %55 = atomicrmw add ptr %0, i64 1 monotonic, align 8
  %56 = load i64, ptr %2, align 8
  %57 = icmp slt i64 %55, %56
  br i1 %57, label %13, label %58

58:
  ret void
}

define internal fastcc i32 @fits(ptr noundef readonly %0, i64 noundef %1, ptr noundef readonly %2, ptr noundef readonly %3) unnamed_addr {
  %5 = getelementptr inbounds nuw i8, ptr %0, i64 64
  %6 = load ptr, ptr %5, align 8
  %7 = getelementptr inbounds i8, ptr %6, i64 %1
  %8 = load i8, ptr %7, align 1
  %9 = icmp eq i8 %8, 0
  br i1 %9, label %10, label %25

10:
  %11 = getelementptr inbounds nuw i8, ptr %3, i64 32
  %12 = load i64, ptr %11, align 8
  %13 = icmp sgt i64 %12, 0
  br i1 %13, label %14, label %27

14:
  %15 = getelementptr inbounds nuw i8, ptr %3, i64 40
  %16 = load ptr, ptr %15, align 8
  br label %17

17:
  %18 = phi i64 [ 0, %14 ], [ %23, %17 ]
  %19 = phi i64 [ 1, %14 ], [ %22, %17 ]
  %20 = getelementptr inbounds nuw i64, ptr %16, i64 %18
  %21 = load i64, ptr %20, align 8
  %22 = mul nsw i64 %21, %19
  %23 = add nuw nsw i64 %18, 1
  %24 = icmp eq i64 %23, %12
  br i1 %24, label %27, label %17

25:
  %26 = tail call fastcc i64 @tiles_of(ptr noundef nonnull %0, ptr noundef %3)
  br label %27

27:
  %28 = phi i64 [ %26, %25 ], [ 1, %10 ], [ %22, %17 ]
  %29 = getelementptr inbounds nuw i8, ptr %2, i64 16
  %30 = load i32, ptr %29, align 8
  %31 = getelementptr inbounds nuw i8, ptr %0, i64 72
  %32 = load ptr, ptr %31, align 8
  %33 = getelementptr inbounds i8, ptr %32, i64 %1
  %34 = load i8, ptr %33, align 1
  %35 = zext i8 %34 to i32
  %36 = icmp eq i32 %30, %35
  br i1 %36, label %37, label %56

37:
  %38 = getelementptr inbounds nuw i8, ptr %2, i64 32
  %39 = load i64, ptr %38, align 8
  %40 = icmp sgt i64 %39, 0
  br i1 %40, label %41, label %52

41:
  %42 = getelementptr inbounds nuw i8, ptr %2, i64 40
  %43 = load ptr, ptr %42, align 8
  br label %44

44:
  %45 = phi i64 [ 0, %41 ], [ %50, %44 ]
  %46 = phi i64 [ 1, %41 ], [ %49, %44 ]
  %47 = getelementptr inbounds nuw i64, ptr %43, i64 %45
  %48 = load i64, ptr %47, align 8
  %49 = mul nsw i64 %48, %46
  %50 = add nuw nsw i64 %45, 1
  %51 = icmp eq i64 %50, %39
  br i1 %51, label %52, label %44

52:
  %53 = phi i64 [ 1, %37 ], [ %49, %44 ]
  %54 = icmp eq i64 %53, %28
  %55 = zext i1 %54 to i32
  br label %56

56:
  %57 = phi i32 [ 0, %27 ], [ %55, %52 ]
  ret i32 %57
}

define internal fastcc i64 @tiles_of(ptr noundef readonly %0, ptr noundef readonly %1) unnamed_addr {
  %3 = getelementptr inbounds nuw i8, ptr %0, i64 56
  %4 = load i64, ptr %3, align 8
  %5 = icmp eq i64 %4, 0
  %6 = getelementptr inbounds nuw i8, ptr %1, i64 32
  %7 = load i64, ptr %6, align 8
  br i1 %5, label %16, label %8

8:
  %9 = icmp eq i64 %7, 0
  br i1 %9, label %43, label %10

10:
  %11 = getelementptr inbounds nuw i8, ptr %1, i64 40
  %12 = load ptr, ptr %11, align 8
  %13 = getelementptr i64, ptr %12, i64 %7
  %14 = getelementptr i8, ptr %13, i64 -8
  %15 = load i64, ptr %14, align 8
  br label %29

16:
  %17 = icmp sgt i64 %7, 0
  br i1 %17, label %18, label %43

18:
  %19 = getelementptr inbounds nuw i8, ptr %1, i64 40
  %20 = load ptr, ptr %19, align 8
  br label %21

21:
  %22 = phi i64 [ 0, %18 ], [ %27, %21 ]
  %23 = phi i64 [ 1, %18 ], [ %26, %21 ]
  %24 = getelementptr inbounds nuw i64, ptr %20, i64 %22
  %25 = load i64, ptr %24, align 8
  %26 = mul nsw i64 %25, %23
  %27 = add nuw nsw i64 %22, 1
  %28 = icmp eq i64 %27, %7
  br i1 %28, label %29, label %21

29:
  %30 = phi ptr [ %12, %10 ], [ %20, %21 ]
  %31 = phi i64 [ %15, %10 ], [ %26, %21 ]
  %32 = icmp eq i64 %31, 0
  br i1 %32, label %53, label %33

33:
  %34 = icmp sgt i64 %7, 0
  br i1 %34, label %35, label %43

35:
  %36 = phi i64 [ %41, %35 ], [ 0, %33 ]
  %37 = phi i64 [ %40, %35 ], [ 1, %33 ]
  %38 = getelementptr inbounds nuw i64, ptr %30, i64 %36
  %39 = load i64, ptr %38, align 8
  %40 = mul nsw i64 %39, %37
  %41 = add nuw nsw i64 %36, 1
  %42 = icmp eq i64 %41, %7
  br i1 %42, label %43, label %35

43:
  %44 = phi i64 [ %31, %33 ], [ 1, %16 ], [ 1, %8 ], [ %31, %35 ]
  %45 = phi i64 [ 1, %33 ], [ 1, %16 ], [ 1, %8 ], [ %40, %35 ]
  %46 = sdiv i64 %45, %44
  %47 = getelementptr inbounds nuw i8, ptr %0, i64 48
  %48 = load i64, ptr %47, align 8
  %49 = add i64 %44, -1
  %50 = add i64 %49, %48
  %51 = sdiv i64 %50, %48
  %52 = mul nsw i64 %51, %46
  br label %53

53:
  %54 = phi i64 [ %52, %43 ], [ 0, %29 ]
  ret i64 %54
}

declare noalias noundef ptr @malloc(i64 noundef) local_unnamed_addr

declare void @free(ptr allocptr noundef) local_unnamed_addr

declare i64 @llvm.smax.i64(i64, i64)

declare i64 @llvm.smin.i64(i64, i64)
